//! Looks at a cluster without changing it: no topic is created, no record is sent, no producer id is asked for, and no
//! group is joined.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{FromClientConfig as _, FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};
use tokio::task::spawn_blocking;

use super::errors::{specificity, stopping};
use super::reason::{MostSpecificReason, Specificity};
use super::rights::{Rights, TopicRight};
use super::{Config, REQUEST_TIMEOUT, properties, topics};
use crate::sink::SessionError;

/// Properties that make a producer ask for a producer id, or report statistics.
const UNUSED: [&str; 3] = [
    "enable.idempotence",
    "enable.gapless.guarantee",
    "statistics.interval.ms",
];

/// How long a part of the wait for an answer may take; then errors are looked at. A bootstrap server usually answers
/// before that, even if the addresses that it answers with are wrong.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// How many reports are read at once.
const REPORTS: usize = 100;

/// The configuration of a topic, and of a broker, that limits messages.
const MAX_OF_TOPIC: &str = "max.message.bytes";
const MAX_OF_BROKER: &str = "message.max.bytes";

/// librdkafka's own limit, its name and its default.
const MAX_OF_CLIENT: (&str, u64) = ("message.max.bytes", 1_000_000);

/// A cluster that was reached.
pub struct ClusterProbe {
    config: Config,
    producer: Arc<BaseProducer<ProbeReports>>,
    /// What each broker calls itself: clients connect to these addresses.
    pub brokers: Vec<AdvertisedBroker>,
}

/// A broker, as the cluster describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdvertisedBroker {
    /// Its id.
    pub id: i32,
    /// The host that it advertises.
    pub host: String,
    /// The port that it advertises.
    pub port: u16,
}

/// A topic of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct FoundTopic {
    /// How many partitions it has.
    pub partitions: i32,
    /// How many replicas a partition has: of the one with the fewest.
    pub replicas: usize,
}

impl ClusterProbe {
    /// Connects as the sink does: TLS, login, and a request for metadata.
    ///
    /// # Errors
    /// The cluster cannot be reached within this time. The reason is the most specific one that librdkafka knows.
    pub async fn connect(config: &Config, timeout: Duration) -> Result<Self, SessionError> {
        let client = probing_client(config);
        let reports = ProbeReports {
            rights: Rights::of(&client),
            state: Mutex::default(),
        };
        // It reads the files of certificates, and a disk may hang.
        let creating =
            spawn_blocking(move || BaseProducer::from_config_and_context(&client, reports));
        let created = tokio::time::timeout(timeout, creating).await;
        let created = created.map_err(|_| {
            let seconds = timeout.as_secs();
            let reason = format!(
                "the files that kafka.properties names could not be read within {seconds} s"
            );
            SessionError::Unavailable(reason, None)
        })?;
        let producer = created.map_err(stopping)?.map_err(|error| {
            SessionError::Unavailable(properties::explain(&error).to_string(), None)
        })?;
        let producer = Arc::new(producer);
        let (client, topic) = (Arc::clone(&producer), config.topic.clone());
        let brokers = spawn_blocking(move || metadata(&client, &topic, timeout));
        let brokers = brokers.await.map_err(stopping)?;
        let probe = Self {
            config: config.clone(),
            producer,
            brokers: Vec::new(),
        };
        match brokers {
            Ok(metadata) => Ok(Self {
                brokers: advertised(&metadata),
                ..probe
            }),
            Err(error) => {
                probe.close().await;
                Err(error)
            }
        }
    }

    /// A topic; none if it does not exist.
    ///
    /// # Errors
    /// The cluster does not answer, or the user may not describe the topic.
    pub async fn topic(&self, topic: &str) -> Result<Option<FoundTopic>, SessionError> {
        use RDKafkaErrorCode as Code;
        let (client, name) = (Arc::clone(&self.producer), topic.to_owned());
        let metadata = spawn_blocking(move || metadata(&client, &name, REQUEST_TIMEOUT));
        let metadata = metadata.await.map_err(stopping)??;
        match topics::partitions(&metadata, topic) {
            Ok(partitions) => Ok(Some(FoundTopic {
                partitions,
                replicas: topics::replicas(&metadata, topic),
            })),
            Err(Code::UnknownTopicOrPartition | Code::UnknownTopic) => Ok(None),
            Err(code) => {
                let reason = format!("cannot use topic {topic}: {code}");
                Err(self.denied(code, TopicRight::Describe, topic, reason))
            }
        }
    }

    /// Has the cluster check whether the relay could create a topic, without creating it.
    ///
    /// # Errors
    /// The user lacks the right, or the cluster does not accept the number of partitions or of replicas.
    pub async fn check_creation(&self, topic: &str) -> Result<(), SessionError> {
        let Config {
            partitions,
            replication_factor,
            ..
        } = self.config;
        let replication = TopicReplication::Fixed(replication_factor);
        let wanted = NewTopic::new(topic, partitions, replication);
        let options = topics::admin_options().validate_only(true);
        let outcomes = self
            .administer(async |admin| admin.create_topics([&wanted], &options).await)
            .await;
        let outcome = outcomes.map(|outcomes| outcomes.into_iter().next());
        let code = match outcome {
            Ok(None | Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)))) => {
                return Ok(());
            }
            Ok(Some(Err((_, code)))) => code,
            Err(error) => error
                .rdkafka_error_code()
                .unwrap_or(RDKafkaErrorCode::Unknown),
        };
        let reason = format!("topic {topic} could not be created: {code}");
        Err(self.denied(code, TopicRight::Create, topic, reason))
    }

    /// The largest batch in bytes that the cluster accepts for a topic; for a topic that does not exist, the broker's
    /// default.
    ///
    /// # Errors
    /// The user may not see the configuration, or the cluster does not answer.
    pub async fn largest_message(&self, topic: Option<&str>) -> Result<u64, String> {
        let broker = self.brokers.first().map_or(-1, |broker| broker.id);
        let (resource, name) = match topic {
            Some(topic) => (ResourceSpecifier::Topic(topic), MAX_OF_TOPIC),
            None => (ResourceSpecifier::Broker(broker), MAX_OF_BROKER),
        };
        let described = self
            .administer(async |admin| {
                admin
                    .describe_configs([&resource], &topics::admin_options())
                    .await
            })
            .await;
        let described = described.map_err(|error| error.to_string())?;
        let config = described.into_iter().next().ok_or("there is no answer")?;
        let config = config.map_err(|code| code.to_string())?;
        let value = config.get(name).and_then(|entry| entry.value.as_deref());
        let value = value.ok_or("the answer does not contain it")?;
        value
            .parse()
            .map_err(|error| format!("the answer is not a number: {error}"))
    }

    /// Closes the connections. Otherwise the end of the process would interrupt librdkafka's threads.
    pub async fn close(self) {
        let _ = spawn_blocking(move || drop(self.producer)).await;
    }

    fn denied(
        &self,
        code: RDKafkaErrorCode,
        right: TopicRight,
        topic: &str,
        reason: String,
    ) -> SessionError {
        let rights = &self.producer.context().rights;
        SessionError::Unavailable(rights.explain(code, right, topic, reason), None)
    }

    /// Sends an administrative request on a connection of its own.
    async fn administer<T>(
        &self,
        request: impl AsyncFnOnce(&AdminClient<DefaultClientContext>) -> KafkaResult<T>,
    ) -> KafkaResult<T> {
        let admin = AdminClient::from_config(&probing_client(&self.config))?;
        let outcome = request(&admin).await;
        // Dropping the client blocks.
        let _ = spawn_blocking(move || drop(admin)).await;
        outcome
    }
}

impl std::fmt::Debug for ClusterProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterProbe")
            .field("brokers", &self.brokers)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The largest message in bytes that librdkafka sends.
    #[must_use]
    pub fn largest_message(&self) -> u64 {
        let (name, default) = MAX_OF_CLIENT;
        let set = self.properties.get(name);
        set.and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    /// Whether connections are encrypted.
    #[must_use]
    pub fn uses_tls(&self) -> bool {
        let protocol = self.properties.get("security.protocol");
        protocol.is_some_and(|protocol| protocol.to_ascii_lowercase().contains("ssl"))
    }

    /// The files of certificates in PEM form, with the keys that name them.
    pub fn certificates(&self) -> impl Iterator<Item = (String, &std::path::Path)> {
        let names = ["ssl.ca.location", "ssl.certificate.location"];
        names.into_iter().filter_map(|name| {
            let path = std::path::Path::new(self.properties.get(name)?);
            Some((format!("kafka.properties.{name}"), path))
        })
    }
}

/// The sink's connection, without what would change something.
fn probing_client(config: &Config) -> ClientConfig {
    let mut client = config.client(None);
    for name in UNUSED {
        client.remove(name);
    }
    // Else a request for a topic's metadata creates it, if the operator has set this to true.
    client.set("allow.auto.create.topics", "false");
    client
}

/// Asks for the metadata of a topic until the cluster answers, every broker has failed, or the time is up. Blocks.
fn metadata(
    producer: &BaseProducer<ProbeReports>,
    topic: &str,
    timeout: Duration,
) -> Result<Metadata, SessionError> {
    let began = Instant::now();
    loop {
        let error = match producer
            .client()
            .fetch_metadata(Some(topic), ATTEMPT_TIMEOUT)
        {
            Ok(metadata) => return Ok(metadata),
            Err(error) => error,
        };
        // Errors of connections are reported only to a poll.
        for _ in 0..REPORTS {
            producer.poll(Duration::ZERO);
        }
        let state = producer.context().state();
        let reason = state.reason.recent(Instant::now());
        let code = error.rdkafka_error_code();
        let is_over = began.elapsed() >= timeout;
        let is_unreachable = code.is_some_and(|code| specificity(code) < Specificity::Cause);
        match reason {
            Some((_, reason)) if state.all_brokers_down || is_over => {
                return Err(SessionError::Unavailable(reason.to_owned(), None));
            }
            _ if is_over => {
                let seconds = timeout.as_secs();
                let reason = format!("the cluster did not answer within {seconds} s");
                return Err(SessionError::Unavailable(reason, None));
            }
            _ if !is_unreachable => {
                return Err(SessionError::unavailable("could not get metadata", error));
            }
            _ => {}
        }
    }
}

fn advertised(metadata: &Metadata) -> Vec<AdvertisedBroker> {
    let brokers = metadata.brokers().iter();
    let advertised = brokers.map(|broker| AdvertisedBroker {
        id: broker.id(),
        host: broker.host().to_owned(),
        port: u16::try_from(broker.port()).unwrap_or_default(),
    });
    advertised.collect()
}

/// What librdkafka reports about the connections.
struct ProbeReports {
    rights: Rights,
    state: Mutex<ProbeState>,
}

#[derive(Default)]
struct ProbeState {
    reason: MostSpecificReason,
    all_brokers_down: bool,
}

impl ProbeReports {
    fn state(&self) -> MutexGuard<'_, ProbeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for ProbeReports {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        let code = code.unwrap_or(RDKafkaErrorCode::Unknown);
        let mut state = self.state();
        if code == RDKafkaErrorCode::AllBrokersDown {
            state.all_brokers_down = true;
        } else {
            state
                .reason
                .update(specificity(code), reason, Instant::now());
        }
    }
}

impl ProducerContext for ProbeReports {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
