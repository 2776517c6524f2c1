// The server and the client in Go: `foreign server HOST:PORT` and `foreign client HOST:PORT < CASES`. See ../__init__.py.
// `foreign greet TARGET...` calls Ping until its input ends.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds" // targets xds:///
)

type pairs [][2]string

type request struct {
	Payload  *string `json:"payload,omitempty"`
	Size     int     `json:"size,omitempty"`
	Initial  pairs   `json:"initial,omitempty"`
	Trailing pairs   `json:"trailing,omitempty"`
	Status   []any   `json:"status,omitempty"`
	Count    *int    `json:"count,omitempty"`
	PauseMs  int     `json:"pause_ms,omitempty"`
	EndAfter int     `json:"end_after,omitempty"`
}

type answer struct {
	Payload  any   `json:"payload"`
	Metadata pairs `json:"metadata"`
	Index    int   `json:"index"`
}

// raw passes messages through as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte{}, data...)
	return nil
}
func (raw) Name() string { return "raw" }

func decoded(given pairs) metadata.MD {
	found := metadata.MD{}
	for _, pair := range given {
		value := pair[1]
		if strings.HasSuffix(pair[0], "-bin") {
			data, _ := base64.StdEncoding.DecodeString(value)
			value = string(data)
		}
		found.Append(pair[0], value)
	}
	return found
}

func encoded(given metadata.MD) pairs {
	found := pairs{}
	for name, values := range given {
		for _, value := range values {
			if strings.HasSuffix(name, "-bin") {
				value = base64.StdEncoding.EncodeToString([]byte(value))
			}
			found = append(found, [2]string{name, value})
		}
	}
	sort.SliceStable(found, func(i, j int) bool { return found[i][0] < found[j][0] })
	return found
}

func (r request) payload() string {
	if r.Payload != nil {
		return *r.Payload
	}
	return strings.Repeat("x", r.Size)
}

func (r request) end() error {
	if len(r.Status) == 2 && r.Status[0].(float64) != 0 {
		return status.Error(codes.Code(r.Status[0].(float64)), r.Status[1].(string))
	}
	return nil
}

func receive(stream grpc.ServerStream) (request, error) {
	var message []byte
	var found request
	if err := stream.RecvMsg(&message); err != nil {
		return found, err
	}
	return found, json.Unmarshal(message, &found)
}

func send(stream grpc.ServerStream, payload string, index int) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	message, _ := json.Marshal(answer{payload, encoded(md), index})
	return stream.SendMsg(&message)
}

func begin(stream grpc.ServerStream, r request) error {
	stream.SetTrailer(decoded(r.Trailing))
	return stream.SendHeader(decoded(r.Initial))
}

func unary(_ any, stream grpc.ServerStream) error {
	r, err := receive(stream)
	if err != nil {
		return err
	}
	if err := begin(stream, r); err != nil {
		return err
	}
	time.Sleep(time.Duration(r.PauseMs) * time.Millisecond)
	if err := r.end(); err != nil {
		return err
	}
	return send(stream, r.payload(), 0)
}

func serverStream(_ any, stream grpc.ServerStream) error {
	r, err := receive(stream)
	if err != nil {
		return err
	}
	if err := begin(stream, r); err != nil {
		return err
	}
	count := 1
	if r.Count != nil {
		count = *r.Count
	}
	for index := 0; index < count; index++ {
		time.Sleep(time.Duration(r.PauseMs) * time.Millisecond)
		if err := send(stream, r.payload(), index); err != nil {
			return err
		}
	}
	return r.end()
}

func clientStream(_ any, stream grpc.ServerStream) error {
	var first request
	payload, count := "", 0
	for {
		r, err := receive(stream)
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if count == 0 {
			first = r
		}
		payload += r.payload()
		count++
	}
	if err := begin(stream, first); err != nil {
		return err
	}
	if err := first.end(); err != nil {
		return err
	}
	return send(stream, payload, count)
}

func bidi(_ any, stream grpc.ServerStream) error {
	var first request
	for index := 0; ; index++ {
		r, err := receive(stream)
		if errors.Is(err, io.EOF) {
			return first.end()
		} else if err != nil {
			return err
		}
		if index == 0 {
			first = r
			if err := begin(stream, r); err != nil {
				return err
			}
		}
		if err := send(stream, r.payload(), index); err != nil {
			return err
		}
		if index+1 == first.EndAfter {
			return first.end()
		}
	}
}

func serverOptions() ([]grpc.ServerOption, error) {
	given := map[string]int{}
	if text := os.Getenv("FOREIGN_OPTIONS"); text != "" {
		if err := json.Unmarshal([]byte(text), &given); err != nil {
			return nil, err
		}
	}
	options := []grpc.ServerOption{
		grpc.ForceServerCodec(raw{}),
		// Zero is for ever.
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge:      time.Duration(given["max_connection_age_ms"]) * time.Millisecond,
			MaxConnectionAgeGrace: time.Duration(given["max_connection_age_grace_ms"]) * time.Millisecond,
			MaxConnectionIdle:     time.Duration(given["max_connection_idle_ms"]) * time.Millisecond,
		}),
	}
	if most := given["max_concurrent_streams"]; most > 0 {
		options = append(options, grpc.MaxConcurrentStreams(uint32(most)))
	}
	return options, nil
}

// TLS by the variables of grpc_server.
func tlsOptions() ([]grpc.ServerOption, error) {
	certificate := os.Getenv("GRPC_TLS_CERTIFICATE")
	if certificate == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(certificate, os.Getenv("GRPC_TLS_KEY"))
	if err != nil {
		return nil, err
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}}
	if authority := os.Getenv("GRPC_TLS_CLIENT_CA"); authority != "" {
		text, err := os.ReadFile(authority)
		if err != nil {
			return nil, err
		}
		config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		config.ClientCAs.AppendCertsFromPEM(text)
	}
	return []grpc.ServerOption{grpc.Creds(credentials.NewTLS(config))}, nil
}

func serve(target string) error {
	listener, err := net.Listen("tcp", target)
	if err != nil {
		return err
	}
	options, err := serverOptions()
	if err != nil {
		return err
	}
	secured, err := tlsOptions()
	if err != nil {
		return err
	}
	server := grpc.NewServer(append(options, secured...)...)
	streams := []grpc.StreamDesc{}
	for name, handler := range map[string]grpc.StreamHandler{
		"Unary": unary, "ServerStream": serverStream, "ClientStream": clientStream, "Bidi": bidi,
	} {
		streams = append(streams, grpc.StreamDesc{
			StreamName: name, Handler: handler, ServerStreams: true, ClientStreams: true,
		})
	}
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "foreign.Echo", HandlerType: (*any)(nil), Streams: streams,
	}, struct{}{})
	fmt.Println("serving")
	return server.Serve(listener)
}

type testCase struct {
	Method      string            `json:"method"`
	Metadata    pairs             `json:"metadata"`
	Requests    []json.RawMessage `json:"requests"`
	TimeoutMs   int               `json:"timeout_ms"`
	CancelAfter int               `json:"cancel_after"`
	Gzip        bool              `json:"gzip"`
	AtOnce      int               `json:"at_once"`
}

type result struct {
	Status   []any    `json:"status"`
	Initial  pairs    `json:"initial"`
	Trailing pairs    `json:"trailing"`
	Answers  []answer `json:"answers"`
}

func carryOut(connection *grpc.ClientConn, one testCase) result {
	timeout := 30 * time.Second
	if one.TimeoutMs > 0 {
		timeout = time.Duration(one.TimeoutMs) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	ctx = metadata.NewOutgoingContext(ctx, decoded(one.Metadata))
	options := []grpc.CallOption{grpc.ForceCodec(raw{})}
	if one.Gzip {
		options = append(options, grpc.UseCompressor(gzip.Name))
	}
	found := result{Answers: []answer{}}
	stream, err := connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		"/foreign.Echo/"+one.Method, options...)
	if err == nil {
		go func() {
			for _, message := range one.Requests {
				data := []byte(message)
				if stream.SendMsg(&data) != nil {
					return
				}
			}
			_ = stream.CloseSend()
		}()
		for {
			var data []byte
			if err = stream.RecvMsg(&data); err != nil {
				break
			}
			var got answer
			_ = json.Unmarshal(data, &got)
			if text, ok := got.Payload.(string); ok && len(text) > 1000 {
				got.Payload = len(text)
			}
			found.Answers = append(found.Answers, got)
			if len(found.Answers) == one.CancelAfter {
				cancel()
			}
		}
		initial, _ := stream.Header()
		found.Initial, found.Trailing = encoded(initial), encoded(stream.Trailer())
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	ended := status.Convert(err)
	found.Status = []any{int(ended.Code()), ended.Message()}
	return found
}

// security reads FOREIGN_TLS, a directory with callers-ca.pem and, of a caller with a certificate, tls.pem and tls-key.pem.
func security() (credentials.TransportCredentials, error) {
	directory := os.Getenv("FOREIGN_TLS")
	if directory == "" {
		return insecure.NewCredentials(), nil
	}
	ca, err := os.ReadFile(directory + "/callers-ca.pem")
	if err != nil {
		return nil, err
	}
	configuration := &tls.Config{RootCAs: x509.NewCertPool()}
	configuration.RootCAs.AppendCertsFromPEM(ca)
	if _, err := os.Stat(directory + "/tls.pem"); err == nil {
		pair, err := tls.LoadX509KeyPair(directory+"/tls.pem", directory+"/tls-key.pem")
		if err != nil {
			return nil, err
		}
		configuration.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(configuration), nil
}

func call(target string) error {
	secured, err := security()
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(secured))
	if err != nil {
		return err
	}
	var cases []testCase
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		return err
	}
	for _, one := range cases {
		found := make([]result, max(one.AtOnce, 1))
		var calls sync.WaitGroup
		for index := range found {
			calls.Go(func() { found[index] = carryOut(connection, one) })
		}
		calls.Wait()
		for _, one := range found {
			line, _ := json.Marshal(one)
			fmt.Println(string(line))
		}
	}
	return connection.Close()
}

// round_robin, and gRPC's standard retry policy; targets of xDS have neither.
const balanced = `{"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{"name": [{}], "retryPolicy": {
	"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 2,
	"retryableStatusCodes": ["UNAVAILABLE"]}}]}`

// counts are the calls of each target by the replica that answered, or the error.
type counts struct {
	sync.Mutex
	seen map[string]map[string]int
}

func (c *counts) add(target, what string) {
	c.Lock()
	defer c.Unlock()
	c.seen[target][what]++
}

// print prints the calls since the last time.
func (c *counts) print() {
	c.Lock()
	defer c.Unlock()
	json.NewEncoder(os.Stdout).Encode(c.seen)
	for target := range c.seen {
		c.seen[target] = map[string]int{}
	}
}

func greetOnce(connection *grpc.ClientConn) string {
	// A PingMessage: field 1 is the greeting.
	question, answer, from := []byte("\x0a\x05hello"), []byte{}, peer.Peer{}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := connection.Invoke(ctx, "/protos.Ping/SayHello", &question, &answer, grpc.Peer(&from)); err != nil {
		return err.Error()
	}
	return from.Addr.String()
}

func greet(targets []string) error {
	// With targets of xDS the control plane says which replicas speak TLS.
	told, err := xds.NewClientCredentials(xds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		return err
	}
	found := &counts{seen: map[string]map[string]int{}}
	for _, target := range targets {
		found.seen[target] = map[string]int{}
	}
	var ended atomic.Bool
	var callers sync.WaitGroup
	for _, target := range targets {
		connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(told),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})), grpc.WithDefaultServiceConfig(balanced))
		if err != nil {
			return err
		}
		defer connection.Close()
		callers.Go(func() {
			for !ended.Load() {
				found.add(target, greetOnce(connection))
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		found.print()
	}
	ended.Store(true)
	callers.Wait()
	found.print()
	return nil
}

func main() {
	var err error
	switch os.Args[1] {
	case "server":
		err = serve(os.Args[2])
	case "client":
		err = call(os.Args[2])
	case "greet":
		err = greet(os.Args[2:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
