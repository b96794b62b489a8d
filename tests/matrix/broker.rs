//! Kafka and RabbitMQ behind the same verbs, for scenarios that are about either.

use std::collections::BTreeMap;

use super::rig::{Kafka, Proxy, RabbitMq, Setup, kafka};
use super::verdict::Arrival;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sink {
    Kafka,
    RabbitMq,
}

impl Sink {
    /// As the relay calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::RabbitMq => "rabbitmq",
        }
    }
}

pub enum Broker {
    Kafka(Box<Kafka>),
    RabbitMq(Box<RabbitMq>),
}

/// Up to where a topic was read; a queue forgets what was taken.
#[derive(Debug, Default)]
pub struct Position(BTreeMap<i32, i64>);

impl Broker {
    pub fn start(sink: Sink) -> Self {
        match sink {
            Sink::Kafka => Self::Kafka(Box::new(Kafka::start_with(&kafka::AUTHORIZER))),
            Sink::RabbitMq => Self::RabbitMq(Box::new(RabbitMq::start())),
        }
    }

    pub const fn sink(&self) -> Sink {
        match self {
            Self::Kafka(_) => Sink::Kafka,
            Self::RabbitMq(_) => Sink::RabbitMq,
        }
    }

    /// The relay's settings for a topic, or exchange and queue, of this name.
    pub fn settings(&self, setup: Setup, name: &str) -> Setup {
        let dead = format!("{name}.dead");
        match self {
            Self::Kafka(kafka) => setup
                .set(
                    "RECALL_KAFKA__BOOTSTRAP_SERVERS",
                    &kafka.bootstrap_servers(),
                )
                .set("RECALL_KAFKA__TOPIC", name)
                .set("RECALL_KAFKA__DEAD_LETTER_TOPIC", &dead),
            Self::RabbitMq(rabbitmq) => setup
                .set("RECALL_RABBITMQ__URI", &rabbitmq.uri())
                .set("RECALL_RABBITMQ__EXCHANGE", name)
                .set("RECALL_RABBITMQ__QUEUE", name)
                .set("RECALL_RABBITMQ__DEAD_LETTER_QUEUE", &dead),
        }
    }

    /// A proxy in front of it, and the settings that lead there.
    pub fn behind_proxy(&self, setup: Setup) -> (Setup, Proxy) {
        match self {
            Self::Kafka(kafka) => {
                let ports = kafka.proxied();
                let servers = format!("127.0.0.1:{}", ports.advertised);
                (
                    setup.set("RECALL_KAFKA__BOOTSTRAP_SERVERS", &servers),
                    Proxy::start(ports.advertised, ports.listens),
                )
            }
            Self::RabbitMq(rabbitmq) => {
                let proxy = Proxy::start(0, rabbitmq.port());
                let uri = format!("amqp://guest:guest@127.0.0.1:{}", proxy.port());
                (setup.set("RECALL_RABBITMQ__URI", &uri), proxy)
            }
        }
    }

    /// The relay finds out sooner that nobody answers. Its own patience is half a minute and more.
    pub fn impatient(&self, setup: Setup) -> Setup {
        match self {
            Self::Kafka(_) => setup.set("RECALL_KAFKA__PROPERTIES__SOCKET_TIMEOUT_MS", "3000"),
            Self::RabbitMq(_) => setup.set("RECALL_RABBITMQ__CONFIRM_TIMEOUT", "3s"),
        }
    }

    /// What has arrived since, of conversations called `tag`: with a client that knows nothing of the
    /// relay, committed records only.
    pub fn read(&self, name: &str, tag: &str, position: &mut Position) -> Vec<Arrival> {
        match self {
            Self::Kafka(kafka) => {
                let records = kafka.read_from(name, &position.0);
                for record in &records {
                    position.0.insert(record.partition, record.offset + 1);
                }
                let events = records.iter().map(|record| &record.payload);
                events.filter_map(|event| Arrival::of(event, tag)).collect()
            }
            Self::RabbitMq(rabbitmq) => {
                let deliveries = rabbitmq.drain(name);
                let events = deliveries.iter().map(|delivery| &delivery.body);
                events.filter_map(|event| Arrival::of(event, tag)).collect()
            }
        }
    }

    pub fn kill(&mut self) {
        match self {
            Self::Kafka(kafka) => kafka.kill(),
            Self::RabbitMq(rabbitmq) => rabbitmq.kill(),
        }
    }

    pub fn stop(&mut self) {
        match self {
            Self::Kafka(kafka) => kafka.stop(),
            Self::RabbitMq(rabbitmq) => rabbitmq.stop(),
        }
    }

    pub fn resume(&mut self) {
        match self {
            Self::Kafka(kafka) => kafka.resume(),
            Self::RabbitMq(rabbitmq) => rabbitmq.resume(),
        }
    }

    pub fn freeze(&self) {
        match self {
            Self::Kafka(kafka) => kafka.freeze(),
            Self::RabbitMq(rabbitmq) => rabbitmq.freeze(),
        }
    }

    pub fn thaw(&self) {
        match self {
            Self::Kafka(kafka) => kafka.thaw(),
            Self::RabbitMq(rabbitmq) => rabbitmq.thaw(),
        }
    }

    /// # Panics
    ///
    /// When it is another broker.
    pub fn kafka(&self) -> &Kafka {
        match self {
            Self::Kafka(kafka) => kafka,
            Self::RabbitMq(_) => panic!("this scenario is about Kafka"),
        }
    }

    /// # Panics
    ///
    /// When it is another broker.
    pub fn rabbitmq(&self) -> &RabbitMq {
        match self {
            Self::RabbitMq(rabbitmq) => rabbitmq,
            Self::Kafka(_) => panic!("this scenario is about RabbitMQ"),
        }
    }
}
