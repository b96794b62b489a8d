import com.rabbitmq.client.ConnectionFactory;
import io.cloudevents.CloudEvent;
import io.cloudevents.core.provider.EventFormatProvider;
import io.cloudevents.jackson.JsonFormat;

/** Prints the events of a RabbitMQ queue: SubscribeRabbitMq URI QUEUE */
public class SubscribeRabbitMq {
    public static void main(String[] arguments) throws Exception {
        var factory = new ConnectionFactory();
        factory.setUri(arguments[0]);
        var channel = factory.newConnection().createChannel();
        channel.basicQos(100);
        channel.basicConsume(arguments[1], (tag, message) -> {
            // The SDK has no binding for RabbitMQ, but it can read the body by its content type.
            var format = EventFormatProvider.getInstance().resolveFormat(message.getProperties().getContentType());
            CloudEvent event = format.deserialize(message.getBody());
            System.out.writeBytes(new JsonFormat().serialize(event)); // your work; event.getData() is the data
            System.out.println();
            channel.basicAck(message.getEnvelope().getDeliveryTag(), false);
        }, tag -> { });
    }
}
