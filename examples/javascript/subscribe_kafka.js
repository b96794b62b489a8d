// Prints the events of Kafka topics: node subscribe_kafka.js SERVERS GROUP TOPIC...
import { Kafka as KafkaBinding } from "cloudevents";
import { Kafka, logLevel } from "kafkajs";

const [servers, groupId, ...topics] = process.argv.slice(2);
const kafka = new Kafka({ brokers: servers.split(","), logLevel: logLevel.WARN });
const consumer = kafka.consumer({ groupId });
await consumer.connect();
await consumer.subscribe({ topics, fromBeginning: true });
await consumer.run({
  eachMessage: async ({ message }) => {
    // kafkajs returns buffers, but the SDK needs strings.
    const headers = Object.entries(message.headers).map(([name, value]) => [name, value.toString()]);
    const event = KafkaBinding.toEvent({
      headers: Object.fromEntries(headers),
      key: message.key.toString(),
      value: message.value.toString(),
    });
    event.validate();
    console.log(event.toString()); // your work; event.data is an object
  },
});
