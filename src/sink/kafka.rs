//! Kafka, through librdkafka: an idempotent producer that waits for all in-sync replicas.
//!
//! Promises beyond those of every sink:
//! - records of one key go to one partition, the one that a Java client would choose, in order: the first
//!   record on a partition goes alone (`partition_state`); after a failed batch the producer stops
//!   (`enable.gapless.guarantee`), and the next session starts again from the cursor;
//! - no record is given up because time has passed (`message.timeout.ms` is 0);
//! - with `kafka.exactly_once`, records and where they end are there together, or neither is (`transactions`);
//!   there both of those are off: a batch that fails or takes too long is aborted as a whole, and sent again.

mod coordinator;
mod errors;
mod group_offset;
mod partition_state;
mod poller;
mod producer;
mod properties;
mod reports;
mod session;
#[cfg(test)]
mod tests;
mod topics;
mod transactions;

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};
use serde::{Deserialize, Serialize};
use tracing::info;
use uuid::Uuid;

pub use properties::{PropertyError, SECRETS, normalize};
pub use session::KafkaSession;

use super::{SessionError, Sink};
use crate::setting;
use coordinator::{Coordinator, Identity};
use producer::Producer;
use transactions::Transactions;

/// The name of this sink.
pub const NAME: &str = "kafka";

/// How long one request to the cluster may take while connecting.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of the Kafka sink.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to find the cluster: `host:port`, several separated by commas.
    pub bootstrap_servers: String,
    /// The topic of the events.
    pub topic: String,
    /// The topic of what could not be understood, or is not accepted.
    pub dead_letter_topic: String,
    /// Whether topics that are missing are created; this takes the right to do so.
    #[serde(deserialize_with = "setting::text")]
    pub create_topics: bool,
    /// Partitions of a topic that is created. Order holds within a partition: to add partitions later
    /// moves conversations.
    #[serde(deserialize_with = "setting::text")]
    pub partitions: i32,
    /// Replicas of a topic that is created; `-1` is the broker's default.
    #[serde(deserialize_with = "setting::text")]
    pub replication_factor: i32,
    /// Events in flight. Too small and each batch waits for the one before; too large and more come
    /// twice after a crash.
    #[serde(deserialize_with = "setting::text")]
    pub window: usize,
    /// Whether each event is there once for subscribers who read committed records only: batches are
    /// transactions, and the cursor stands in the cluster. Takes longer, and more rights.
    #[serde(deserialize_with = "setting::text")]
    pub exactly_once: bool,
    /// Any property of librdkafka, by its own name.
    pub properties: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bootstrap_servers: String::new(),
            topic: "im.message.recalled".to_owned(),
            dead_letter_topic: "im.message.recalled.dead-letter".to_owned(),
            create_topics: true,
            partitions: 6,
            replication_factor: -1,
            window: 10_000,
            exactly_once: false,
            properties: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Checks the settings as far as that goes without a cluster.
    ///
    /// # Errors
    /// Says which setting is wrong, and why.
    pub fn check(&self) -> Result<(), PropertyError> {
        if self.bootstrap_servers.trim().is_empty() {
            return Err(PropertyError::of("kafka.bootstrap_servers", "is missing"));
        }
        if self.window == 0 {
            return Err(PropertyError::of("kafka.window", "must be at least 1"));
        }
        for (key, topic) in [
            ("kafka.topic", &self.topic),
            ("kafka.dead_letter_topic", &self.dead_letter_topic),
        ] {
            if topic.is_empty() {
                return Err(PropertyError::of(key, "is empty"));
            }
        }
        if self.topic == self.dead_letter_topic {
            let problem = "must not be the topic of the events";
            return Err(PropertyError::of("kafka.dead_letter_topic", problem));
        }
        if self.partitions < 1 {
            return Err(PropertyError::of("kafka.partitions", "must be at least 1"));
        }
        properties::check(&self.properties)?;
        // Some properties are only checked against each other by a client, which connects to nobody
        // where it is told of no server.
        let mut client = self.client(self.exactly_once.then_some("check"));
        client.remove("bootstrap.servers");
        BaseProducer::from_config_and_context(&client, Silent)
            .map(drop)
            .map_err(|error| properties::explain(&error))
    }

    /// What librdkafka is told: our defaults, the operator's properties, and what the promise rests on.
    fn client(&self, transactional_id: Option<&str>) -> ClientConfig {
        let mut client = ClientConfig::new();
        for (name, value) in [
            ("client.id", "recall-relay"),
            ("allow.auto.create.topics", "false"),
            ("socket.keepalive.enable", "true"),
            ("queue.buffering.max.kbytes", "32768"),
            // A topic that is gone is taken for one that is still to come, so long; the next session
            // creates it again.
            ("topic.metadata.propagation.max.ms", "5000"),
        ] {
            client.set(name, value);
        }
        client.set(
            "queue.buffering.max.messages",
            self.window.saturating_mul(2).to_string(),
        );
        for (name, value) in &self.properties {
            client.set(name, value);
        }
        client.set("bootstrap.servers", &self.bootstrap_servers);
        for (name, value) in properties::PROMISE {
            client.set(name, value);
        }
        if let Some(id) = transactional_id {
            client.set("transactional.id", id);
            // A transaction that fails is aborted as a whole, and may take no longer than the cluster lets it.
            client.remove("enable.gapless.guarantee");
            client.remove("message.timeout.ms");
        }
        client
    }
}

/// A client that is made only to see whether it can be: what it logs is none of ours.
struct Silent;

impl ClientContext for Silent {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Silent {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

impl ConsumerContext for Silent {}

/// A Kafka cluster.
#[derive(Debug)]
pub struct Kafka {
    config: Config,
    /// Where events are published exactly once.
    identity: Option<Identity>,
}

/// librdkafka's property, its default, and the smallest that is tried.
const BATCH_SIZE: &str = "batch.size";
const DEFAULT_BATCH_SIZE: u32 = 1_000_000;
const SMALLEST_BATCH_SIZE: u32 = 1000;

impl Kafka {
    /// The cluster that `config` describes, for the events of this spool.
    #[must_use]
    pub fn new(config: Config, spool_id: Uuid) -> Self {
        let identity = config.exactly_once.then(|| Identity::of(spool_id));
        Self { config, identity }
    }
}

impl Sink for Kafka {
    type Session = KafkaSession;

    fn name(&self) -> &'static str {
        NAME
    }

    fn window(&self) -> usize {
        self.config.window
    }

    fn make_smaller_batches(&mut self) {
        let properties = &mut self.config.properties;
        let size = properties
            .get(BATCH_SIZE)
            .and_then(|size| size.parse().ok());
        let size: u32 = size.unwrap_or(DEFAULT_BATCH_SIZE);
        let smaller = (size / 2).max(SMALLEST_BATCH_SIZE).min(size);
        info!(
            bytes = smaller,
            "the cluster takes no large batches; they are made smaller"
        );
        properties.insert(BATCH_SIZE.to_owned(), smaller.to_string());
    }

    async fn connect(&mut self) -> Result<KafkaSession, SessionError> {
        let Self { config, identity } = self;
        let id = identity.as_ref().map(|identity| identity.id.as_str());
        let client = config.client(id);
        let mut producer = Producer::open(&client, &config.topic, &config.dead_letter_topic)?;
        let ready = async {
            producer.starts(topics::ensure(config, producer.client()).await?);
            match identity {
                None => Ok(None),
                Some(identity) => {
                    let opened = Coordinator::open(&producer, &client, &config.topic, identity);
                    let (coordinator, position) = opened.await?;
                    Ok(Some(Transactions::new(coordinator, position)))
                }
            }
        };
        match ready.await {
            Ok(transactions) => Ok(KafkaSession::new(producer, transactions)),
            Err(error) => {
                producer.close().await;
                Err(error)
            }
        }
    }
}
