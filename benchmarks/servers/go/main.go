// A server of grpc-go as its documentation starts one: main [-name NAME] ADDRESS:PORT. It answers with the request. With
// a name it does what the original's server did: it answers with a greeting and writes a line for each call.
//
// google.protobuf.StringValue has the form of protos.PingMessage, and Int64Value is that of the ticks, so nothing is
// generated here.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const interval = 10 * time.Millisecond

// sayHello answers with the request's greeting.
func sayHello(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	request := new(wrapperspb.StringValue)
	if err := decode(request); err != nil {
		return nil, err
	}
	return request, nil
}

// greeter answers as the original's server, which has this name.
func greeter(name string) func(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error) {
	answer := wrapperspb.String("Hello from " + name + ".")
	return func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		request := new(wrapperspb.StringValue)
		if err := decode(request); err != nil {
			return nil, err
		}
		log.Printf("Received message from client: %s", request.Value)
		return answer, nil
	}
}

// ticks sends the time of CLOCK_MONOTONIC, in nanoseconds, until the client leaves.
func ticks(_ any, stream grpc.ServerStream) error {
	if err := stream.RecvMsg(new(emptypb.Empty)); err != nil {
		return err
	}
	for {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			return err
		}
		if err := stream.SendMsg(wrapperspb.Int64(now.Nano())); err != nil {
			return err
		}
		time.Sleep(interval)
	}
}

func main() {
	name := flag.String("name", "", "greet with this name, and log calls")
	flag.Parse()
	handler := sayHello
	if *name != "" {
		handler = greeter(*name)
	}
	listener, err := net.Listen("tcp", flag.Arg(0))
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "protos.Ping",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "SayHello", Handler: handler}},
	}, nil)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "bench.Stream",
		HandlerType: (*any)(nil),
		Streams:     []grpc.StreamDesc{{StreamName: "Ticks", Handler: ticks, ServerStreams: true}},
	}, nil)
	log.Fatal(server.Serve(listener))
}
