//! Kafka and RabbitMQ behind the same verbs, for scenarios that are about either.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use super::rig::{self, Kafka, Proxy, RabbitMq, Setup, kafka};
use super::verdict::Arrival;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sink {
    Kafka,
    /// With `kafka.exactly_once`.
    KafkaExactlyOnce,
    RabbitMq,
}

impl Sink {
    pub const ALL: [Self; 3] = [Self::Kafka, Self::KafkaExactlyOnce, Self::RabbitMq];

    /// As the relay calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kafka | Self::KafkaExactlyOnce => "kafka",
            Self::RabbitMq => "rabbitmq",
        }
    }

    /// As the table calls it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::KafkaExactlyOnce => "kafka_exactly_once",
            Self::Kafka | Self::RabbitMq => self.name(),
        }
    }
}

pub struct Broker {
    pub sink: Sink,
    pub program: Program,
}

pub enum Program {
    Kafka(Box<Kafka>),
    RabbitMq(Box<RabbitMq>),
}

/// Up to where a topic was read; a queue forgets what was taken.
#[derive(Debug, Default)]
pub struct Position(BTreeMap<i32, i64>);

impl Broker {
    pub fn start(sink: Sink) -> Self {
        let program = match sink {
            Sink::Kafka | Sink::KafkaExactlyOnce => {
                Program::Kafka(Box::new(Kafka::start_with(&kafka::AUTHORIZER)))
            }
            Sink::RabbitMq => Program::RabbitMq(Box::new(RabbitMq::start())),
        };
        Self { sink, program }
    }

    /// The relay's settings for a topic, or exchange and queue, of this name.
    pub fn settings(&self, setup: Setup, name: &str) -> Setup {
        let setup = self.deref().settings(setup, name);
        match self.sink {
            Sink::KafkaExactlyOnce => setup.set("RECALL_KAFKA__EXACTLY_ONCE", "true"),
            Sink::Kafka | Sink::RabbitMq => setup,
        }
    }

    /// A proxy in front of it, and the settings that lead there.
    pub fn behind_proxy(&self, setup: Setup) -> (Setup, Proxy) {
        match &self.program {
            Program::Kafka(kafka) => {
                let ports = kafka.proxied();
                let servers = format!("127.0.0.1:{}", ports.advertised);
                (
                    setup.set("RECALL_KAFKA__BOOTSTRAP_SERVERS", &servers),
                    Proxy::start(ports.advertised, ports.listens),
                )
            }
            Program::RabbitMq(rabbitmq) => {
                let proxy = Proxy::start(0, rabbitmq.port());
                let uri = format!("amqp://guest:guest@127.0.0.1:{}", proxy.port());
                (setup.set("RECALL_RABBITMQ__URI", &uri), proxy)
            }
        }
    }

    /// The relay finds out sooner that nobody answers. Its own limit is half a minute and more.
    pub fn impatient(&self, setup: Setup) -> Setup {
        match &self.program {
            Program::Kafka(_) => setup.set("RECALL_KAFKA__PROPERTIES__SOCKET_TIMEOUT_MS", "3000"),
            Program::RabbitMq(_) => setup.set("RECALL_RABBITMQ__CONFIRM_TIMEOUT", "3s"),
        }
    }

    /// What has arrived since, of conversations called `tag`: with a client that knows nothing of the
    /// relay, committed records only.
    pub fn read(&self, name: &str, tag: &str, position: &mut Position) -> Vec<Arrival> {
        match &self.program {
            Program::Kafka(kafka) => {
                let records = kafka.read_from(name, &position.0);
                for record in &records {
                    position.0.insert(record.partition, record.offset + 1);
                }
                let events = records.iter().map(|record| &record.payload);
                events.filter_map(|event| Arrival::of(event, tag)).collect()
            }
            Program::RabbitMq(rabbitmq) => {
                let deliveries = rabbitmq.drain(name);
                let events = deliveries.iter().map(|delivery| &delivery.body);
                events.filter_map(|event| Arrival::of(event, tag)).collect()
            }
        }
    }

    /// What is in a transaction that has not ended: it is there, and no subscriber sees it yet.
    pub fn read_open(&self, name: &str, tag: &str, position: &Position) -> Vec<Arrival> {
        match &self.program {
            Program::Kafka(kafka) => {
                let records = kafka.read_uncommitted_from(name, &position.0);
                let events = records.iter().map(|record| &record.payload);
                events.filter_map(|event| Arrival::of(event, tag)).collect()
            }
            Program::RabbitMq(_) => Vec::new(),
        }
    }

    /// # Panics
    ///
    /// When it is another broker.
    pub fn kafka(&self) -> &Kafka {
        match &self.program {
            Program::Kafka(kafka) => kafka,
            Program::RabbitMq(_) => panic!("this scenario is about Kafka"),
        }
    }

    /// # Panics
    ///
    /// When it is another broker.
    pub fn rabbitmq(&self) -> &RabbitMq {
        match &self.program {
            Program::RabbitMq(rabbitmq) => rabbitmq,
            Program::Kafka(_) => panic!("this scenario is about RabbitMQ"),
        }
    }
}

impl Deref for Broker {
    type Target = dyn rig::Broker;

    fn deref(&self) -> &Self::Target {
        match &self.program {
            Program::Kafka(kafka) => &**kafka,
            Program::RabbitMq(rabbitmq) => &**rabbitmq,
        }
    }
}

impl DerefMut for Broker {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match &mut self.program {
            Program::Kafka(kafka) => &mut **kafka,
            Program::RabbitMq(rabbitmq) => &mut **rabbitmq,
        }
    }
}
