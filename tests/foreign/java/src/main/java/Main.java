import com.google.gson.Gson;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.TlsChannelCredentials;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.xds.XdsChannelCredentials;
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * The server and the clients in Java: `server HOST:PORT`, `client HOST:PORT < CASES` and `greet TARGET...`. See
 * ../__init__.py.
 */
public final class Main {
    private static final String NAME = "foreign.Echo";
    private static final ScheduledExecutorService LATER = Executors.newScheduledThreadPool(1, work -> {
        Thread thread = new Thread(work);
        thread.setDaemon(true);
        return thread;
    });

    private static final MethodDescriptor.Marshaller<byte[]> RAW = new MethodDescriptor.Marshaller<>() {
        @Override
        public InputStream stream(byte[] value) {
            return new ByteArrayInputStream(value);
        }

        @Override
        public byte[] parse(InputStream stream) {
            try {
                return stream.readAllBytes();
            } catch (IOException error) {
                throw new IllegalStateException(error);
            }
        }
    };

    private static MethodDescriptor<byte[], byte[]> method(String name) {
        return MethodDescriptor.<byte[], byte[]>newBuilder(RAW, RAW)
                .setType(MethodDescriptor.MethodType.BIDI_STREAMING)
                .setFullMethodName(name)
                .build();
    }

    private static Metadata decoded(JsonElement pairs) {
        Metadata found = new Metadata();
        if (pairs != null) {
            for (JsonElement pair : pairs.getAsJsonArray()) {
                String name = pair.getAsJsonArray().get(0).getAsString();
                String value = pair.getAsJsonArray().get(1).getAsString();
                if (name.endsWith("-bin")) {
                    found.put(Metadata.Key.of(name, Metadata.BINARY_BYTE_MARSHALLER), Base64.getDecoder().decode(value));
                } else {
                    found.put(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER), value);
                }
            }
        }
        return found;
    }

    private static JsonArray encoded(Metadata metadata) {
        JsonArray found = new JsonArray();
        for (String name : metadata == null ? List.<String>of() : metadata.keys()) {
            if (name.endsWith("-bin")) {
                for (byte[] value : metadata.getAll(Metadata.Key.of(name, Metadata.BINARY_BYTE_MARSHALLER))) {
                    found.add(pair(name, Base64.getEncoder().encodeToString(value)));
                }
            } else {
                for (String value : metadata.getAll(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER))) {
                    found.add(pair(name, value));
                }
            }
        }
        return found;
    }

    private static JsonArray pair(String name, String value) {
        JsonArray made = new JsonArray();
        made.add(name);
        made.add(value);
        return made;
    }

    private static int number(JsonObject request, String key, int otherwise) {
        return request.has(key) ? request.get(key).getAsInt() : otherwise;
    }

    private static String payload(JsonObject request) {
        return request.has("payload") ? request.get("payload").getAsString() : "x".repeat(number(request, "size", 0));
    }

    /** One call at the server: of a stream's requests the first one says how it goes on. */
    private static final class Handler extends ServerCall.Listener<byte[]> {
        private final String method;
        private final ServerCall<byte[], byte[]> call;
        private final Metadata headers;
        private final List<JsonObject> requests = new ArrayList<>();
        private boolean over;

        Handler(String method, ServerCall<byte[], byte[]> call, Metadata headers) {
            this.method = method;
            this.call = call;
            this.headers = headers;
            call.request(1);
        }

        private JsonObject first() {
            return requests.isEmpty() ? new JsonObject() : requests.get(0);
        }

        private void begin() {
            call.sendHeaders(decoded(first().get("initial")));
        }

        private void send(String payload, int index) {
            JsonObject answer = new JsonObject();
            answer.addProperty("payload", payload);
            answer.add("metadata", encoded(headers));
            answer.addProperty("index", index);
            call.sendMessage(answer.toString().getBytes(StandardCharsets.UTF_8));
        }

        private Status status() {
            JsonArray given = first().has("status") ? first().getAsJsonArray("status") : null;
            return given == null ? Status.OK
                    : Status.fromCodeValue(given.get(0).getAsInt()).withDescription(given.get(1).getAsString());
        }

        private void end() {
            if (!over && !call.isCancelled()) {
                over = true;
                call.close(status(), decoded(first().get("trailing")));
            }
        }

        @Override
        public void onMessage(byte[] message) {
            if (over) {
                return;
            }
            requests.add(JsonParser.parseString(new String(message, StandardCharsets.UTF_8)).getAsJsonObject());
            if (method.equals("Bidi")) {
                if (requests.size() == 1) {
                    begin();
                }
                send(payload(requests.get(requests.size() - 1)), requests.size() - 1);
                if (requests.size() == number(first(), "end_after", 0)) {
                    end();
                    return;
                }
            }
            call.request(1);
        }

        @Override
        public void onHalfClose() {
            switch (method) {
                case "Unary" -> {
                    begin();
                    LATER.schedule(() -> {
                        if (status().isOk() && !call.isCancelled()) {
                            send(payload(first()), 0);
                        }
                        end();
                    }, number(first(), "pause_ms", 0), TimeUnit.MILLISECONDS);
                }
                case "ServerStream" -> {
                    begin();
                    tick(0);
                }
                case "ClientStream" -> {
                    begin();
                    if (status().isOk()) {
                        StringBuilder joined = new StringBuilder();
                        requests.forEach(request -> joined.append(payload(request)));
                        send(joined.toString(), requests.size());
                    }
                    end();
                }
                default -> end();
            }
        }

        private void tick(int index) {
            if (call.isCancelled()) {
                return;
            }
            if (index == number(first(), "count", 1)) {
                end();
                return;
            }
            LATER.schedule(() -> {
                if (!call.isCancelled()) {
                    send(payload(first()), index);
                    tick(index + 1);
                }
            }, number(first(), "pause_ms", 0), TimeUnit.MILLISECONDS);
        }
    }

    private static void serve(InetSocketAddress address) throws Exception {
        ServerServiceDefinition.Builder service = ServerServiceDefinition.builder(NAME);
        for (String name : List.of("Unary", "ServerStream", "ClientStream", "Bidi")) {
            ServerCallHandler<byte[], byte[]> handler = (call, headers) -> new Handler(name, call, headers);
            service.addMethod(method(NAME + "/" + name), handler);
        }
        var server = NettyServerBuilder.forAddress(address).addService(service.build()).build().start();
        System.out.println("serving");
        server.awaitTermination();
    }

    private static JsonObject carryOut(ManagedChannel channel, JsonObject one) throws Exception {
        CallOptions options = CallOptions.DEFAULT
                .withDeadlineAfter(number(one, "timeout_ms", 30000), TimeUnit.MILLISECONDS);
        if (one.has("gzip") && one.get("gzip").getAsBoolean()) {
            options = options.withCompression("gzip");
        }
        ClientCall<byte[], byte[]> call = channel.newCall(method(NAME + "/" + one.get("method").getAsString()), options);
        JsonObject found = new JsonObject();
        JsonArray answers = new JsonArray();
        found.add("initial", new JsonArray());
        found.add("answers", answers);
        CompletableFuture<JsonObject> done = new CompletableFuture<>();
        call.start(new ClientCall.Listener<>() {
            @Override
            public void onHeaders(Metadata headers) {
                found.add("initial", encoded(headers));
            }

            @Override
            public void onMessage(byte[] message) {
                JsonObject got = JsonParser.parseString(new String(message, StandardCharsets.UTF_8)).getAsJsonObject();
                if (got.get("payload").getAsString().length() > 1000) {
                    got.addProperty("payload", got.get("payload").getAsString().length());
                }
                answers.add(got);
                if (answers.size() == number(one, "cancel_after", 0)) {
                    call.cancel("enough", null);
                }
                call.request(1);
            }

            @Override
            public void onClose(Status status, Metadata trailers) {
                JsonArray ended = new JsonArray();
                ended.add(status.getCode().value());
                ended.add(status.getDescription() == null ? "" : status.getDescription());
                found.add("status", ended);
                found.add("trailing", encoded(trailers));
                done.complete(found);
            }
        }, decoded(one.get("metadata")));
        call.request(1);
        for (JsonElement request : one.getAsJsonArray("requests")) {
            call.sendMessage(request.toString().getBytes(StandardCharsets.UTF_8));
        }
        call.halfClose();
        return done.get();
    }

    /** FOREIGN_TLS: a directory with callers-ca.pem and, of a caller with a certificate, tls.pem and tls-key.pem. */
    private static ManagedChannel open(InetSocketAddress address) throws Exception {
        String directory = System.getenv("FOREIGN_TLS");
        if (directory == null) {
            return NettyChannelBuilder.forAddress(address).usePlaintext().build();
        }
        var credentials = TlsChannelCredentials.newBuilder().trustManager(new File(directory, "callers-ca.pem"));
        if (new File(directory, "tls.pem").exists()) {
            credentials.keyManager(new File(directory, "tls.pem"), new File(directory, "tls-key.pem"));
        }
        return NettyChannelBuilder.forAddress(address, credentials.build()).build();
    }

    private static void call(InetSocketAddress address) throws Exception {
        ManagedChannel channel = open(address);
        JsonElement cases = JsonParser.parseReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (JsonElement one : cases.getAsJsonArray()) {
            System.out.println(carryOut(channel, one.getAsJsonObject()));
        }
        channel.shutdownNow();
    }

    /** The calls of each target by the replica that answered, or the error. */
    private static final class Counts {
        private final Map<String, Map<String, Integer>> seen = new TreeMap<>();

        Counts(List<String> targets) {
            targets.forEach(target -> seen.put(target, new TreeMap<>()));
        }

        synchronized void add(String target, String what) {
            seen.get(target).merge(what, 1, Integer::sum);
        }

        /** Prints the calls since the last time. */
        synchronized void print() {
            System.out.println(new Gson().toJson(seen));
            seen.values().forEach(Map::clear);
        }
    }

    private static String greetOnce(ManagedChannel channel) throws Exception {
        ClientCall<byte[], byte[]> call = channel.newCall(
                method("protos.Ping/SayHello"), CallOptions.DEFAULT.withDeadlineAfter(30, TimeUnit.SECONDS));
        CompletableFuture<String> done = new CompletableFuture<>();
        call.start(new ClientCall.Listener<>() {
            @Override
            public void onClose(Status status, Metadata trailers) {
                if (status.isOk()) {
                    var peer = (InetSocketAddress) call.getAttributes().get(Grpc.TRANSPORT_ATTR_REMOTE_ADDR);
                    done.complete(peer.getHostString() + ":" + peer.getPort());
                } else {
                    done.complete(status.toString());
                }
            }
        }, new Metadata());
        call.request(2);
        // A PingMessage: field 1 is the greeting.
        call.sendMessage("\n\u0005hello".getBytes(StandardCharsets.UTF_8));
        call.halfClose();
        return done.get();
    }

    private static void greet(List<String> targets) throws Exception {
        Counts counts = new Counts(targets);
        AtomicBoolean ended = new AtomicBoolean();
        List<Future<?>> callers = new ArrayList<>();
        ExecutorService threads = Executors.newCachedThreadPool();
        for (String target : targets) {
            callers.add(threads.submit(() -> {
                // With targets of xDS the control plane says which replicas speak TLS.
                var told = XdsChannelCredentials.create(InsecureChannelCredentials.create());
                ManagedChannel channel = Grpc.newChannelBuilder(target, told).build();
                while (!ended.get()) {
                    counts.add(target, greetOnce(channel));
                    Thread.sleep(20);
                }
                return channel.shutdownNow();
            }));
        }
        var input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        while (input.readLine() != null) {
            counts.print();
        }
        ended.set(true);
        for (Future<?> caller : callers) {
            caller.get();
        }
        counts.print();
        threads.shutdown();
    }

    private static InetSocketAddress address(String target) {
        int colon = target.lastIndexOf(':');
        return new InetSocketAddress(target.substring(0, colon), Integer.parseInt(target.substring(colon + 1)));
    }

    public static void main(String[] arguments) throws Exception {
        switch (arguments[0]) {
            case "server" -> serve(address(arguments[1]));
            case "client" -> call(address(arguments[1]));
            default -> greet(List.of(arguments).subList(1, arguments.length));
        }
    }
}
