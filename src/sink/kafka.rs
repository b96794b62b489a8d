//! Kafka, through librdkafka: an idempotent producer that waits for all in-sync replicas.
//!
//! Promises beyond those of every sink:
//! - records with one key go in order to one partition, the one that a Java client would choose. The first record on a
//!   partition is sent alone (`partition_state`). After a failed batch the producer stops (`enable.gapless.guarantee`),
//!   and the next session starts again from the cursor;
//! - no record fails because of its age (`message.timeout.ms` is 0);
//! - with `kafka.exactly_once`, the records and the position where they end are committed together or not at all
//!   (`transactions`). Then `enable.gapless.guarantee` and `message.timeout.ms` are not set: a batch that fails or
//!   takes too long is aborted as a whole, and sent again.

mod consumer;
mod coordinator;
mod errors;
mod event_bytes;
mod find;
mod group_offset;
mod message;
mod partition_state;
mod poller;
mod probe;
mod producer;
mod properties;
mod reason;
mod record_id;
mod reports;
mod rights;
mod server;
mod session;
mod subscribe;
#[cfg(test)]
mod tests;
mod topics;
mod transactions;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::info;
use uuid::Uuid;

pub use find::{Place, find};
pub use message::ContentMode;
pub use probe::{AdvertisedBroker, ClusterProbe, FoundTopic};
pub use properties::{SECRETS, normalize};
pub use server::host_and_port;
pub use session::KafkaSession;
pub use subscribe::{StartAt, subscribe};

use super::{CredentialsError, SessionError, Sink};
use crate::setting::{self, Secret, SettingError};
use crate::telemetry::LoggedTexts;
use coordinator::{Coordinator, Identity};
use producer::Producer;
use transactions::Transactions;

/// The name of this sink.
pub const NAME: &str = "kafka";

/// Timeout of each request to the cluster while connecting.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of the Kafka sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The bootstrap servers: `host:port`, several separated by commas.
    #[serde(deserialize_with = "server::list")]
    pub bootstrap_servers: String,
    /// The topic that events are published to.
    #[serde(deserialize_with = "topics::name")]
    pub topic: String,
    /// The topic of dead letters: callbacks that could not be parsed, and events that the broker refuses.
    #[serde(deserialize_with = "topics::name")]
    pub dead_letter_topic: String,
    /// Whether to create missing topics; this needs the permission to create them.
    #[serde(deserialize_with = "setting::text")]
    pub create_topics: bool,
    /// Partitions of a topic that the relay creates. Order is kept within a partition: adding partitions later moves
    /// conversations to other partitions.
    #[serde(deserialize_with = "setting::number::<_, _, 1, 1_000_000>")]
    pub partitions: i32,
    /// Replication factor of a topic that the relay creates; `-1` is the broker's default.
    #[serde(deserialize_with = "setting::number::<_, _, -1, 32_767>")]
    pub replication_factor: i32,
    /// How a record contains an event.
    pub content_mode: ContentMode,
    /// Events in flight. If it is too small, each batch waits for the previous one; if too large, more events are
    /// duplicated after a crash.
    #[serde(deserialize_with = "setting::number::<_, _, 1, 1_000_000>")]
    pub window: usize,
    /// Whether subscribers that read only committed records see each event exactly once. Batches are then transactions,
    /// and the cluster keeps the cursor. This is slower, and needs more permissions.
    #[serde(deserialize_with = "setting::text")]
    pub exactly_once: bool,
    /// Any librdkafka property, by its own name.
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
            content_mode: ContentMode::Structured,
            window: 10_000,
            exactly_once: false,
            properties: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Checks the settings as far as possible without a cluster.
    ///
    /// # Errors
    /// Returns which setting is wrong, and why.
    pub fn check(&self) -> Result<(), SettingError> {
        if self.bootstrap_servers.is_empty() {
            return Err(SettingError::new(
                "kafka.bootstrap_servers",
                "is missing; set it to host:port, or to several separated by commas",
            ));
        }
        if self.replication_factor == 0 {
            let problem = "must be at least 1, or -1 for the cluster's default";
            return Err(SettingError::new("kafka.replication_factor", problem));
        }
        if self.topic == self.dead_letter_topic {
            let problem = "must differ from kafka.topic";
            return Err(SettingError::new("kafka.dead_letter_topic", problem));
        }
        properties::check(&self.properties)?;
        // Without files: a certificate that is missing or being replaced must not prevent a start.
        let without_files = Self {
            properties: self
                .properties
                .clone()
                .into_iter()
                .filter(|(name, _)| !properties::is_file(name))
                .collect(),
            ..self.clone()
        };
        without_files.check_client()?;
        properties::check_protocol(&self.properties)
    }

    /// Checks what librdkafka checks only when it creates a client: some properties against each other, and certificates
    /// and keys. Without `bootstrap.servers`, the client connects to no broker. Blocks.
    ///
    /// # Errors
    /// Returns which property is wrong, and why.
    pub fn check_client(&self) -> Result<(), SettingError> {
        let mut client = self.client(self.exactly_once.then_some("check"));
        client.remove("bootstrap.servers");
        BaseProducer::from_config_and_context(&client, Silent)
            .map(drop)
            .map_err(|error| properties::explain(&error))
    }

    /// Takes what `new` says about the connection. Credentials alone could not be used with other properties than those
    /// that they were written with, such as another mechanism.
    pub fn take_connection(&mut self, new: &Self) {
        self.bootstrap_servers.clone_from(&new.bootstrap_servers);
        self.properties.clone_from(&new.properties);
    }

    /// The same connection with another user's credentials.
    ///
    /// # Errors
    /// The connection's protocol or mechanism has no user and password.
    pub fn with_credentials(
        mut self,
        user: &str,
        password: &Secret,
    ) -> Result<Self, CredentialsError> {
        let property = |names: &[&str]| {
            let value = names.iter().find_map(|name| self.properties.get(*name));
            value.map_or_else(String::new, |value| value.to_ascii_uppercase())
        };
        if !property(&["security.protocol"]).starts_with("SASL_") {
            return Err(CredentialsError(
                "kafka.properties.security.protocol has no user; leave out --user, or set SASL_SSL or SASL_PLAINTEXT",
            ));
        }
        if property(&["sasl.mechanism", "sasl.mechanisms"]) == "OAUTHBEARER" {
            return Err(CredentialsError(
                "kafka.properties.sasl.mechanism is OAUTHBEARER, which has no user; leave out --user",
            ));
        }
        let credentials = [
            ("sasl.username", user),
            ("sasl.password", password.expose()),
        ];
        for (name, value) in credentials {
            self.properties.insert(name.to_owned(), value.to_owned());
        }
        Ok(self)
    }

    /// The files of certificates and keys that the properties name.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let named = self
            .properties
            .iter()
            .filter(|(name, _)| properties::is_file(name));
        named.map(|(_, path)| PathBuf::from(path)).collect()
    }

    /// The client's configuration: our defaults, the operator's properties, and the properties that the promises depend
    /// on.
    fn client(&self, transactional_id: Option<&str>) -> ClientConfig {
        let mut client = ClientConfig::new();
        for (name, value) in [
            ("client.id", "recall-relay"),
            ("allow.auto.create.topics", "false"),
            ("socket.keepalive.enable", "true"),
            ("queue.buffering.max.kbytes", "32768"),
            // For this long, librdkafka treats a deleted topic as one that does not exist yet. Then the session ends,
            // and the next one creates the topic again.
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
            // A failed transaction is aborted as a whole, so no gap can occur; and the cluster limits how long a
            // transaction may take.
            client.remove("enable.gapless.guarantee");
            client.remove("message.timeout.ms");
        }
        client
    }
}

/// The context of a short-lived client whose log and errors are not needed.
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
    settings: watch::Receiver<Config>,
    /// Answers wait for confirms, so no record waits for others.
    is_awaited: bool,
    /// The librdkafka property, once it is reduced.
    batch_size: Option<u32>,
    /// Set if events are published exactly once.
    identity: Option<Identity>,
    /// The errors that librdkafka has logged, in all sessions.
    logged: Arc<Mutex<LoggedTexts>>,
}

/// The librdkafka property, its default, and the smallest value that the relay sets.
const BATCH_SIZE: &str = "batch.size";
const DEFAULT_BATCH_SIZE: u32 = 1_000_000;
const SMALLEST_BATCH_SIZE: u32 = 1000;

/// How long a record waits for others that are sent with it: the librdkafka property, and its other name.
const LINGER: [&str; 2] = ["linger.ms", "queue.buffering.max.ms"];

impl Kafka {
    /// The cluster described by `settings`, for the events of this spool. Only those of the connection may change.
    /// `is_awaited` says whether answers wait for its confirms.
    #[must_use]
    pub fn new(settings: watch::Receiver<Config>, spool_id: Uuid, is_awaited: bool) -> Self {
        let exactly_once = settings.borrow().exactly_once;
        Self {
            settings,
            is_awaited,
            batch_size: None,
            identity: exactly_once.then(|| Identity::of(spool_id)),
            logged: Arc::default(),
        }
    }
}

impl Sink for Kafka {
    type Session = KafkaSession;

    fn name(&self) -> &'static str {
        NAME
    }

    fn window(&self) -> usize {
        self.settings.borrow().window
    }

    fn make_smaller_batches(&mut self) {
        let configured = || {
            self.settings
                .borrow()
                .properties
                .get(BATCH_SIZE)?
                .parse()
                .ok()
        };
        let size = self
            .batch_size
            .or_else(configured)
            .unwrap_or(DEFAULT_BATCH_SIZE);
        let smaller = (size / 2).max(SMALLEST_BATCH_SIZE).min(size);
        info!(
            code = "batch_size_reduced",
            bytes = smaller,
            "broker accepts events singly that it refused in a batch; reduced batch.size of the producer"
        );
        self.batch_size = Some(smaller);
    }

    async fn connection_changed(&mut self) {
        super::changed(&mut self.settings).await;
    }

    async fn connect(&mut self) -> Result<KafkaSession, SessionError> {
        let mut config = self.settings.borrow_and_update().clone();
        if let Some(bytes) = self.batch_size {
            config
                .properties
                .insert(BATCH_SIZE.to_owned(), bytes.to_string());
        }
        if self.is_awaited
            && !LINGER
                .iter()
                .any(|name| config.properties.contains_key(*name))
        {
            config
                .properties
                .insert(LINGER[0].to_owned(), "0".to_owned());
        }
        let Self {
            identity, logged, ..
        } = self;
        let id = identity.as_ref().map(|identity| identity.id.as_str());
        let client = config.client(id);
        let mut producer = Producer::open(&client, &config, Arc::clone(logged))?;
        let ready = async {
            producer.set_partition_counts(topics::ensure(&config, producer.client()).await?);
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
