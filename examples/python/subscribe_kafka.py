"""Prints the events of Kafka topics: subscribe_kafka.py SERVERS GROUP TOPIC..."""
import sys

from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from cloudevents.core.formats.json import JSONFormat
from confluent_kafka import Consumer

servers, group, *topics = sys.argv[1:]
consumer = Consumer({
    "bootstrap.servers": servers,
    "group.id": group,
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
})
consumer.subscribe(topics)
while True:
    record = consumer.poll(1.0)
    if record is None:
        continue
    if record.error():
        print("kafka:", record.error(), file=sys.stderr)
        continue
    message = KafkaMessage(headers=dict(record.headers() or []), key=record.key(), value=record.value())
    event = from_kafka_event(message)
    print(JSONFormat().write(event).decode(), flush=True)  # your work; event.get_data() is a dictionary
    consumer.commit(message=record, asynchronous=False)
