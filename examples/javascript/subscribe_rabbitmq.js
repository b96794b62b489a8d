// Prints the events of a RabbitMQ queue: node subscribe_rabbitmq.js URI QUEUE
import amqp from "amqplib";
import { HTTP } from "cloudevents";

const [uri, queue] = process.argv.slice(2);
const channel = await (await amqp.connect(uri)).createChannel();
await channel.prefetch(100);
await channel.consume(queue, (message) => {
  // The SDK has no binding for RabbitMQ. In structured mode, HTTP's reads the same content type and body.
  const event = HTTP.toEvent({
    headers: { "content-type": message.properties.contentType },
    body: message.content.toString(),
  });
  event.validate();
  console.log(event.toString()); // your work; event.data is an object
  channel.ack(message);
});
