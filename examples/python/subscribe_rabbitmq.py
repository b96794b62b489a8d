"""Prints the events of a RabbitMQ queue: subscribe_rabbitmq.py URI QUEUE"""
import sys

import pika
from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_rabbitmq_event
from cloudevents.core.formats.json import JSONFormat

uri, queue = sys.argv[1:]


def on_message(channel, method, properties, body):
    message = RabbitMQMessage(headers=properties.headers or {}, content_type=properties.content_type, body=body)
    event = from_rabbitmq_event(message)
    print(JSONFormat().write(event).decode(), flush=True)  # your work; event.get_data() is a dictionary
    channel.basic_ack(method.delivery_tag)


channel = pika.BlockingConnection(pika.URLParameters(uri)).channel()
channel.basic_qos(prefetch_count=100)
channel.basic_consume(queue, on_message)
channel.start_consuming()
