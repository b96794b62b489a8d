//! Kafka and RabbitMQ behind one interface, for scenarios that run on both.

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

    /// The name of the sink in the relay.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kafka | Self::KafkaExactlyOnce => "kafka",
            Self::RabbitMq => "rabbitmq",
        }
    }

    /// The name of the sink in the table.
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

/// How far a topic has been read. Reading a queue consumes it, so it needs no position.
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

    /// A cluster of three nodes.
    pub fn start_cluster(sink: Sink) -> Self {
        let program = match sink {
            Sink::Kafka | Sink::KafkaExactlyOnce => {
                Program::Kafka(Box::new(Kafka::start_cluster()))
            }
            Sink::RabbitMq => Program::RabbitMq(Box::new(RabbitMq::start_cluster())),
        };
        Self { sink, program }
    }

    /// Kills a node of the cluster and deletes its data.
    pub fn lose_node(&mut self, number: usize) {
        match &mut self.program {
            Program::Kafka(kafka) => kafka.lose_node(number),
            Program::RabbitMq(rabbitmq) => rabbitmq.lose_node(number),
        }
    }

    /// Starts the node with an empty disk, and waits until the others have replicated to it.
    pub fn replace_node(&mut self, number: usize) {
        match &mut self.program {
            Program::Kafka(kafka) => kafka.replace_node(number),
            Program::RabbitMq(rabbitmq) => rabbitmq.replace_node(number),
        }
    }

    /// The relay's settings for a topic, or an exchange and a queue, of this name.
    pub fn settings(&self, setup: Setup, name: &str) -> Setup {
        let setup = self.deref().settings(setup, name);
        match self.sink {
            Sink::KafkaExactlyOnce => setup.set("RECALL_KAFKA__EXACTLY_ONCE", "true"),
            Sink::Kafka | Sink::RabbitMq => setup,
        }
    }

    /// Starts a proxy in front of the broker; also returns the settings that connect the relay to it.
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

    /// Shortens the timeout for a broker that does not answer. The default is half a minute or more.
    pub fn with_short_timeouts(&self, setup: Setup) -> Setup {
        match &self.program {
            Program::Kafka(_) => setup.set("RECALL_KAFKA__PROPERTIES__SOCKET_TIMEOUT_MS", "3000"),
            Program::RabbitMq(_) => setup.set("RECALL_RABBITMQ__CONFIRM_TIMEOUT", "3s"),
        }
    }

    /// Reads what has arrived after `position`, of conversations whose names begin with `tag`. The client does not depend
    /// on the relay and reads only committed records.
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

    /// Also reads the records of open transactions, which no subscriber sees yet. Does not advance `position`.
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
    /// If this is the other broker.
    pub fn kafka(&self) -> &Kafka {
        match &self.program {
            Program::Kafka(kafka) => kafka,
            Program::RabbitMq(_) => panic!("this scenario is about Kafka"),
        }
    }

    /// # Panics
    ///
    /// If this is the other broker.
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
