// Command subscribe_kafka prints the events of Kafka topics: subscribe_kafka SERVERS GROUP TOPIC...
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/IBM/sarama"
	"github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
)

func main() {
	ctx := context.Background()
	servers, group, topics := strings.Split(os.Args[1], ","), os.Args[2], os.Args[3:]
	config := sarama.NewConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	consumers, err := sarama.NewConsumerGroup(servers, group, config)
	check(err)
	receiver := kafka_sarama.NewReceiver()
	go func() {
		for {
			check(consumers.Consume(ctx, topics, receiver))
		}
	}()
	for {
		message, err := receiver.Receive(ctx)
		check(err)
		event, err := binding.ToEvent(ctx, message)
		check(err)
		check(event.Validate())
		text, err := event.MarshalJSON()
		check(err)
		fmt.Println(string(text)) // your work; event.DataAs decodes the data
		check(message.Finish(nil))
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
