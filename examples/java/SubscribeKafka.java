import io.cloudevents.CloudEvent;
import io.cloudevents.jackson.JsonFormat;
import io.cloudevents.kafka.CloudEventDeserializer;
import java.time.Duration;
import java.util.Arrays;
import java.util.Map;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.StringDeserializer;

/** Prints the events of Kafka topics: SubscribeKafka SERVERS GROUP TOPIC... */
public class SubscribeKafka {
    public static void main(String[] arguments) {
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", arguments[0],
            "group.id", arguments[1],
            "auto.offset.reset", "earliest",
            "enable.auto.commit", false,
            "key.deserializer", StringDeserializer.class,
            "value.deserializer", CloudEventDeserializer.class);
        try (var consumer = new KafkaConsumer<String, CloudEvent>(settings)) {
            consumer.subscribe(Arrays.asList(arguments).subList(2, arguments.length));
            while (true) {
                for (var record : consumer.poll(Duration.ofSeconds(1))) {
                    CloudEvent event = record.value();
                    System.out.writeBytes(new JsonFormat().serialize(event)); // your work; event.getData() is the data
                    System.out.println();
                }
                consumer.commitSync();
            }
        }
    }
}
