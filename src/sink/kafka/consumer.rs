//! A consumer with manually assigned partitions: it joins no group and commits no offset, so it takes no record from
//! other consumers. It reads only committed records.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};
use serde::Deserialize;
use tracing::debug;

use super::errors::specificity;
use super::reason::{MostSpecificReason, Specificity};
use super::rights::{Rights, TopicRight};
use super::{Config, properties, topics};
use crate::sink::SessionError;

/// librdkafka assigns partitions only to a consumer with a group id, and looks up the group's coordinator. The consumer
/// reads even if that lookup fails, so it needs no right on the group.
const GROUP: &str = "recall-relay-tail";

/// Properties that the operator sets for the producer, and that limit or contradict those of a consumer.
const OF_THE_PRODUCER: [&str; 2] = ["message.max.bytes", "receive.message.max.bytes"];

/// The properties of the consumer.
const CONSUMER: [(&str, &str); 9] = [
    ("group.id", GROUP),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("isolation.level", "read_committed"),
    // The records may have been deleted, or the topic created again: go on with those that are there.
    ("auto.offset.reset", "earliest"),
    ("enable.partition.eof", "true"),
    // The end of a partition is reported only after this time without a new record.
    ("fetch.wait.max.ms", "100"),
    ("queued.max.messages.kbytes", "8192"),
    ("statistics.interval.ms", "1000"),
];

/// How long to wait for the reason when a request has failed.
const REPORTS_TIMEOUT: Duration = Duration::from_millis(200);

/// What a poll has returned.
pub(super) enum Polled<'a> {
    /// A record.
    Record(BorrowedMessage<'a>),
    /// A partition was read to its end.
    End(i32),
    /// The topic cannot be read, or a partition of it; the consumer retries by itself.
    Problem(RDKafkaErrorCode),
    Nothing,
}

/// A consumer of topics of the cluster. Its methods block.
pub(super) struct TopicConsumer {
    consumer: BaseConsumer<ConsumerReports>,
}

impl TopicConsumer {
    pub(super) fn new(config: &Config) -> Result<Self, SessionError> {
        let client = consumer_client(config);
        let reports = ConsumerReports {
            rights: Rights::of(&client),
            connection: Mutex::default(),
        };
        let consumer = BaseConsumer::from_config_and_context(&client, reports);
        let consumer = consumer.map_err(|error| {
            SessionError::Unavailable(properties::explain(&error).to_string(), None)
        })?;
        Ok(Self { consumer })
    }

    /// How many partitions a topic has; none if it does not exist.
    pub(super) fn partition_count(
        &self,
        topic: &str,
        timeout: Duration,
    ) -> Result<Option<i32>, SessionError> {
        let metadata = self.consumer.fetch_metadata(Some(topic), timeout);
        let metadata =
            metadata.map_err(|error| self.request_failed("could not look up", topic, error))?;
        match topics::partitions(&metadata, topic) {
            Ok(count) => Ok(Some(count)),
            Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                Ok(None)
            }
            Err(code) => {
                let right = TopicRight::Describe;
                Err(self.cannot_read(topic, right, code))
            }
        }
    }

    /// For each of these partitions, the offset of the first record from this time on, in Unix milliseconds, and the
    /// partition's end. If there is no such record, or no time, both are the end.
    pub(super) fn offsets(
        &self,
        topic: &str,
        partitions: &[i32],
        since: Option<i64>,
        timeout: Duration,
    ) -> Result<BTreeMap<i32, Range<i64>>, SessionError> {
        let failed = |error| self.request_failed("could not look up the offsets of", topic, error);
        let look_up = |at: Offset| -> KafkaResult<Vec<(i32, Offset)>> {
            let mut wanted = TopicPartitionList::new();
            for partition in partitions {
                wanted.add_partition_offset(topic, *partition, at)?;
            }
            let found = self.consumer.offsets_for_times(wanted, timeout)?;
            let found = found.elements_for_topic(topic).into_iter().map(|element| {
                element.error()?;
                Ok((element.partition(), element.offset()))
            });
            found.collect()
        };
        // The ends first: a record that arrives between the two requests must not be skipped.
        let ends = look_up(Offset::End).map_err(failed)?.into_iter();
        let mut ranges: BTreeMap<i32, Range<i64>> = ends
            .filter_map(|(partition, end)| match end {
                Offset::Offset(end) => Some((partition, end..end)),
                _ => None,
            })
            .collect();
        if let Some(millis) = since {
            for (partition, start) in look_up(Offset::Offset(millis)).map_err(failed)? {
                if let (Some(range), Offset::Offset(start)) = (ranges.get_mut(&partition), start) {
                    range.start = start.min(range.end);
                }
            }
        }
        Ok(ranges)
    }

    /// Reads these partitions of a topic, each from its offset, and no other ones.
    pub(super) fn assign(
        &self,
        topic: &str,
        offsets: impl IntoIterator<Item = (i32, Offset)>,
    ) -> Result<(), SessionError> {
        let failed = |error| self.request_failed("could not read", topic, error);
        let mut assignment = TopicPartitionList::new();
        for (partition, offset) in offsets {
            let added = assignment.add_partition_offset(topic, partition, offset);
            added.map_err(failed)?;
        }
        self.consumer.assign(&assignment).map_err(failed)
    }

    /// Waits for the next record, but for no longer than `timeout`.
    ///
    /// # Errors
    /// The user may not read the topic, or the client has failed.
    pub(super) fn poll(&self, topic: &str, timeout: Duration) -> Result<Polled<'_>, SessionError> {
        use RDKafkaErrorCode as Code;
        match self.consumer.poll(timeout) {
            None => Ok(Polled::Nothing),
            Some(Ok(record)) => Ok(Polled::Record(record)),
            Some(Err(KafkaError::PartitionEOF(partition))) => Ok(Polled::End(partition)),
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                Err(self.cannot_read(topic, TopicRight::Read, code))
            }
            Some(Err(error)) => match error.rdkafka_error_code().unwrap_or(Code::Unknown) {
                code @ Code::TopicAuthorizationFailed => {
                    Err(self.cannot_read(topic, TopicRight::Read, code))
                }
                // Nothing is asked of the group's coordinator.
                Code::GroupAuthorizationFailed => Ok(Polled::Nothing),
                // The statistics tell what this means for the partitions.
                code if specificity(code) < Specificity::Cause => Ok(Polled::Nothing),
                code => Ok(Polled::Problem(code)),
            },
        }
    }

    /// Why the last request or connection failed, if that was lately.
    pub(super) fn last_error(&self) -> Option<String> {
        let connection = self.reports().connection();
        let recent = connection.reason.recent(Instant::now());
        recent.map(|(_, reason)| reason.to_owned())
    }

    /// The number of assigned partitions whose leader cannot be reached, and the number of assigned partitions. `None`
    /// unless the first number has changed from zero, or to zero, since the last call.
    pub(super) fn unreadable_changed(&self) -> Option<(usize, usize)> {
        let mut connection = self.reports().connection();
        let (now, assigned) = connection.unreadable?;
        let changed = (now > 0) != connection.is_reported;
        connection.is_reported = now > 0;
        changed.then_some((now, assigned))
    }

    fn reports(&self) -> &ConsumerReports {
        self.consumer.context()
    }

    fn cannot_read(&self, topic: &str, right: TopicRight, code: RDKafkaErrorCode) -> SessionError {
        let text = format!("cannot read topic {topic}: {code}");
        let rights = &self.reports().rights;
        SessionError::Unavailable(rights.explain(code, right, topic, text), None)
    }

    /// The error if a request to the cluster failed.
    fn request_failed(&self, action: &str, topic: &str, error: KafkaError) -> SessionError {
        // Errors of connections are reported only to a poll, after other reports, and a poll takes one at a time.
        let deadline = Instant::now() + REPORTS_TIMEOUT;
        while self.last_error().is_none() && Instant::now() < deadline {
            let _ = self.consumer.poll(REPORTS_TIMEOUT);
        }
        let action = format!("{action} topic {topic}");
        let code = error
            .rdkafka_error_code()
            .unwrap_or(RDKafkaErrorCode::Unknown);
        if specificity(code) < Specificity::Cause
            && let Some(reason) = self.last_error()
        {
            return SessionError::Unavailable(format!("{action}: {reason}"), None);
        }
        let rights = &self.reports().rights;
        let action = rights.explain(code, TopicRight::Describe, topic, action);
        SessionError::unavailable(action, error)
    }
}

/// The configuration of the consumer: the sink's connection.
fn consumer_client(config: &Config) -> ClientConfig {
    // librdkafka ignores the other properties of producers.
    let mut client = config.client(None);
    for name in OF_THE_PRODUCER {
        client.remove(name);
    }
    for (name, value) in CONSUMER {
        client.set(name, value);
    }
    client
}

/// What the consumer reports about its connections.
struct ConsumerReports {
    rights: Rights,
    connection: Mutex<ConnectionState>,
}

#[derive(Default)]
struct ConnectionState {
    reason: MostSpecificReason,
    /// Of how many assigned partitions the leader could not be reached in the last two statistics, and how many are
    /// assigned.
    unreadable: Option<(usize, usize)>,
    /// The same, in the last statistics only: a leader may be replaced in between.
    newest: usize,
    /// Whether [`TopicConsumer::unreadable_changed`] has last told of unreadable partitions.
    is_reported: bool,
}

impl ConsumerReports {
    fn connection(&self) -> MutexGuard<'_, ConnectionState> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for ConsumerReports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(target: "librdkafka", ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        use RDKafkaErrorCode as Code;
        let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
        if !matches!(code, Code::PartitionEOF | Code::GroupAuthorizationFailed) {
            let reasons = &mut self.connection().reason;
            reasons.update(specificity(code), reason, Instant::now());
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice::<ConsumerStatistics>(statistics) {
            Ok(statistics) => {
                let (unreadable, assigned) = statistics.unreadable();
                let mut connection = self.connection();
                let lasting = unreadable.min(connection.newest);
                connection.newest = unreadable;
                connection.unreadable = Some((lasting, assigned));
            }
            Err(error) => debug!(%error, "could not parse librdkafka's statistics"),
        }
    }
}

impl ConsumerContext for ConsumerReports {}

/// The part of librdkafka's statistics that shows which partitions can be read.
#[derive(Deserialize)]
struct ConsumerStatistics {
    brokers: HashMap<String, BrokerConnection>,
    topics: HashMap<String, TopicPartitions>,
}

#[derive(Deserialize)]
struct BrokerConnection {
    nodeid: i32,
    source: String,
    state: String,
}

#[derive(Deserialize)]
struct TopicPartitions {
    partitions: HashMap<String, PartitionLeader>,
}

#[derive(Deserialize)]
struct PartitionLeader {
    leader: i32,
    desired: bool,
}

impl ConsumerStatistics {
    /// Of how many assigned partitions the leader is not connected, and how many are assigned.
    fn unreadable(&self) -> (usize, usize) {
        let is_up = |leader: i32| {
            self.brokers.values().any(|broker| {
                // A `logical` broker is librdkafka's own, such as the group's coordinator.
                broker.nodeid == leader && broker.source != "logical" && broker.state == "UP"
            })
        };
        let partitions = self
            .topics
            .values()
            .flat_map(|topic| topic.partitions.values());
        let assigned = partitions.filter(|partition| partition.desired);
        assigned.fold((0, 0), |(unreadable, assigned), partition| {
            let is_unreadable = usize::from(!is_up(partition.leader));
            (unreadable + is_unreadable, assigned + 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An operator may set any of them for the producer.
    #[test]
    fn properties_of_the_producer_do_not_prevent_a_consumer() {
        for properties in [
            vec![
                ("message.max.bytes", "1000000000"),
                ("receive.message.max.bytes", "1000"),
            ],
            vec![
                ("linger.ms", "20"),
                ("batch.size", "1000"),
                ("compression.type", "zstd"),
                ("max.in.flight", "1"),
                ("queue.buffering.max.ms", "20"),
                ("request.timeout.ms", "1000"),
                ("group.id", "other"),
                ("enable.auto.commit", "true"),
                ("isolation.level", "read_uncommitted"),
            ],
        ] {
            let properties = properties
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()));
            let config = Config {
                properties: properties.collect(),
                exactly_once: true,
                ..Config::default()
            };
            assert!(TopicConsumer::new(&config).is_ok(), "{config:?}");
            let client = consumer_client(&config);
            for (name, value) in CONSUMER {
                assert_eq!(client.get(name), Some(value));
            }
        }
    }

    #[test]
    fn a_partition_is_unreadable_if_its_leader_is_not_connected() {
        let unreadable = |state: &str, leader: i32| {
            let statistics = serde_json::json!({
                "brokers": {
                    "a:1/1": {"nodeid": 1, "source": "learned", "state": state},
                    "GroupCoordinator": {"nodeid": 2, "source": "logical", "state": "UP"},
                },
                "topics": {"t": {"partitions": {
                    "0": {"leader": leader, "desired": true},
                    "-1": {"leader": -1, "desired": false},
                }}},
            });
            let statistics: ConsumerStatistics = serde_json::from_value(statistics).unwrap();
            statistics.unreadable()
        };
        assert_eq!(unreadable("UP", 1), (0, 1));
        assert_eq!(unreadable("CONNECT", 1), (1, 1));
        assert_eq!(unreadable("UP", 2), (1, 1));
        assert_eq!(unreadable("UP", -1), (1, 1));
    }
}
