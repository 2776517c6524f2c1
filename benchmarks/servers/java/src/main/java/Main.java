import com.google.protobuf.Empty;
import com.google.protobuf.Int64Value;
import com.google.protobuf.Message;
import com.google.protobuf.StringValue;
import io.grpc.InsecureServerCredentials;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Server;
import io.grpc.ServerServiceDefinition;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.ServerCalls;
import io.grpc.stub.StreamObserver;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;

/**
 * A server of grpc-java as its documentation starts one: Main ADDRESS:PORT.
 *
 * <p>StringValue has the form of protos.PingMessage, and Int64Value is that of the ticks, so nothing is generated here.
 */
public final class Main {
  private static final long INTERVAL_MILLIS = 10;
  private static final ScheduledExecutorService TIMER = Executors.newScheduledThreadPool(1);

  private Main() {}

  private static <Q extends Message, A extends Message> MethodDescriptor<Q, A> method(
      MethodType type, String name, Q request, A answer) {
    return MethodDescriptor.<Q, A>newBuilder(ProtoUtils.marshaller(request), ProtoUtils.marshaller(answer))
        .setType(type)
        .setFullMethodName(name)
        .build();
  }

  /** Answers with the request's greeting. */
  private static void sayHello(StringValue request, StreamObserver<StringValue> answer) {
    answer.onNext(request);
    answer.onCompleted();
  }

  /** Sends the time of CLOCK_MONOTONIC, which nanoTime reads on Linux, until the client leaves. */
  private static void ticks(Empty request, StreamObserver<Int64Value> answer) {
    Runnable tick = () -> answer.onNext(Int64Value.of(System.nanoTime()));
    ScheduledFuture<?> timer = TIMER.scheduleWithFixedDelay(tick, 0, INTERVAL_MILLIS, TimeUnit.MILLISECONDS);
    ((ServerCallStreamObserver<Int64Value>) answer).setOnCancelHandler(() -> timer.cancel(false));
  }

  public static void main(String[] arguments) throws Exception {
    String address = arguments[0].substring(0, arguments[0].lastIndexOf(':'));
    int port = Integer.parseInt(arguments[0].substring(address.length() + 1));
    StringValue text = StringValue.getDefaultInstance();
    MethodDescriptor<StringValue, StringValue> hello =
        method(MethodType.UNARY, "protos.Ping/SayHello", text, text);
    MethodDescriptor<Empty, Int64Value> ticks =
        method(
            MethodType.SERVER_STREAMING,
            "bench.Stream/Ticks",
            Empty.getDefaultInstance(),
            Int64Value.getDefaultInstance());
    Server server =
        NettyServerBuilder.forAddress(new InetSocketAddress(address, port), InsecureServerCredentials.create())
            .addService(
                ServerServiceDefinition.builder("protos.Ping")
                    .addMethod(hello, ServerCalls.asyncUnaryCall(Main::sayHello))
                    .build())
            .addService(
                ServerServiceDefinition.builder("bench.Stream")
                    .addMethod(ticks, ServerCalls.asyncServerStreamingCall(Main::ticks))
                    .build())
            .build()
            .start();
    server.awaitTermination();
  }
}
