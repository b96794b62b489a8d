// Command subscribe_rabbitmq prints the events of a RabbitMQ queue: subscribe_rabbitmq URI QUEUE
package main

import (
	"fmt"
	"log"
	"os"

	"github.com/cloudevents/sdk-go/v2/binding/format"
	"github.com/cloudevents/sdk-go/v2/event"
	amqp "github.com/rabbitmq/amqp091-go"
)

func main() {
	uri, queue := os.Args[1], os.Args[2]
	connection, err := amqp.Dial(uri)
	check(err)
	channel, err := connection.Channel()
	check(err)
	check(channel.Qos(100, 0, false))
	messages, err := channel.Consume(queue, "", false, false, false, false, nil)
	check(err)
	for message := range messages {
		// The SDK has no binding for RabbitMQ, but it can read the body by its content type.
		var read event.Event
		check(format.Unmarshal(message.ContentType, message.Body, &read))
		check(read.Validate())
		text, err := read.MarshalJSON()
		check(err)
		fmt.Println(string(text)) // your work; read.DataAs decodes the data
		check(message.Ack(false))
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
