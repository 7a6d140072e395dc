package example;

import com.google.protobuf.ByteString;
import com.google.rpc.ErrorInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.pixtralserve.v1.Chat;
import io.pixtralserve.v1.ChatServiceGrpc;
import io.pixtralserve.v1.CompleteRequest;
import io.pixtralserve.v1.ContentPart;
import io.pixtralserve.v1.Image;
import io.pixtralserve.v1.ListModelsRequest;
import io.pixtralserve.v1.Message;
import io.pixtralserve.v1.Role;
import io.pixtralserve.v1.SamplingParams;
import io.pixtralserve.v1.StreamCompleteRequest;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;

/**
 * Asks about an image over gRPC, whole and then as a stream.
 *
 * <pre>mvn compile exec:java -Dexec.args="IMAGE QUESTION"</pre>
 */
public final class Ask {
  public static void main(String[] arguments) throws Exception {
    var image = arguments.length > 0 ? arguments[0] : "../../docs/demo/street.png";
    var question = arguments.length > 1 ? arguments[1] : "How many shapes are there?";
    var target = System.getenv().getOrDefault("PIXTRAL_TARGET", "127.0.0.1:50051");
    var channel = Grpc.newChannelBuilder(target, InsecureChannelCredentials.create()).build();
    var client = ChatServiceGrpc.newBlockingStub(channel).withDeadlineAfter(60, TimeUnit.SECONDS);

    var models = client.listModels(ListModelsRequest.getDefaultInstance());
    System.out.println("model: " + models.getModels(0).getName());

    var data = ByteString.copyFrom(Files.readAllBytes(Path.of(image)));
    var message =
        Message.newBuilder()
            .setRole(Role.ROLE_USER)
            .addContent(ContentPart.newBuilder().setImage(Image.newBuilder().setData(data)))
            .addContent(ContentPart.newBuilder().setText(question));
    var chat =
        Chat.newBuilder()
            .addMessages(message)
            .setSampling(SamplingParams.newBuilder().setTemperature(0));

    var answer = client.complete(CompleteRequest.newBuilder().setChat(chat).build());
    var usage = answer.getCompletion().getUsage();
    System.out.println("whole: " + answer.getChoices(0).getText());
    System.out.println(
        "tokens: " + usage.getPromptTokens() + " and " + usage.getCompletionTokens());

    System.out.print("stream: ");
    client
        .streamComplete(StreamCompleteRequest.newBuilder().setChat(chat).build())
        .forEachRemaining(event -> System.out.print(event.getDelta().getText()));
    System.out.println();

    chat.setSampling(SamplingParams.newBuilder().setTemperature(-1));
    try {
      client.complete(CompleteRequest.newBuilder().setChat(chat).build());
    } catch (StatusRuntimeException error) {
      for (var detail : StatusProto.fromThrowable(error).getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          System.out.println("refused: " + detail.unpack(ErrorInfo.class).getReason());
        }
      }
    }
    channel.shutdown();
  }
}
