// A load of unary calls from grpc-go: main TARGET CONNECTIONS CALLERS CALLS. Prints JSON: answered, failed, seconds.
//
// A target static:///ADDRESS:PORT,... is called in turn (round robin), as one that names its servers itself.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	_ "google.golang.org/grpc/xds" // targets xds:///
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const roundRobin = `{"loadBalancingConfig": [{"round_robin": {}}]}`

// connect opens a connection of its own, and makes calls until there is one to every server that answers.
func connect(target string) *grpc.ClientConn {
	static := manual.NewBuilderWithScheme("static")
	var addresses []resolver.Address
	for _, one := range strings.Split(strings.TrimPrefix(target, "static:///"), ",") {
		addresses = append(addresses, resolver.Address{Addr: one})
	}
	static.InitialState(resolver.State{Addresses: addresses})
	connection, err := grpc.NewClient(target, grpc.WithResolvers(static), grpc.WithDefaultServiceConfig(roundRobin),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	for range 30 {
		if err := call(connection, grpc.WaitForReady(true)); err != nil {
			log.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return connection
}

// call makes one call; google.protobuf.StringValue has the form of protos.PingMessage.
func call(connection *grpc.ClientConn, options ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	answer := new(wrapperspb.StringValue)
	return connection.Invoke(ctx, "/protos.Ping/SayHello", wrapperspb.String("hello"), answer, options...)
}

func main() {
	target := os.Args[1]
	var numbers [3]int
	for index := range numbers {
		number, err := strconv.Atoi(os.Args[2+index])
		if err != nil {
			log.Fatal(err)
		}
		numbers[index] = number
	}
	connections := make([]*grpc.ClientConn, numbers[0])
	for index := range connections {
		connections[index] = connect(target)
	}
	var begun, failed atomic.Int64
	var callers sync.WaitGroup
	began := time.Now()
	for number := range numbers[1] {
		callers.Go(func() {
			for begun.Add(1) <= int64(numbers[2]) {
				if call(connections[number%len(connections)]) != nil {
					failed.Add(1)
				}
			}
		})
	}
	callers.Wait()
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"answered": int64(numbers[2]) - failed.Load(), "failed": failed.Load(), "seconds": time.Since(began).Seconds(),
	})
}
