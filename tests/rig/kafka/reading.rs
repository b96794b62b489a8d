//! Reads records as a subscriber does, without the relay's code.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde_json::{Value, json};

use super::super::broker::header;
use super::super::node::poll;
use super::{Kafka, TIMEOUT, client_config};

/// The isolation level of a subscriber.
const COMMITTED: &str = "read_committed";

/// An event as a subscriber receives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<String>,
    pub headers: Vec<(String, String)>,
    pub payload: Vec<u8>,
}

impl Kafka {
    /// Waits until a topic has `expected_at_least` records, then reads all of it as a subscriber does (committed
    /// records only), by partition and offset.
    ///
    /// # Panics
    ///
    /// If it has fewer when `timeout` ends.
    pub fn read(&self, topic: &str, expected_at_least: usize, timeout: Duration) -> Vec<Record> {
        let deadline = Instant::now() + timeout;
        let mut records = Vec::new();
        let enough = poll(timeout, || {
            if let Some(whole) = self.read_to_end(topic, COMMITTED, &BTreeMap::new(), deadline) {
                records = whole;
            }
            records.len() >= expected_at_least
        });
        assert!(
            enough,
            "{topic} has {} of {expected_at_least} records after {timeout:?}: {records:#?}",
            records.len(),
        );
        records
    }

    /// All current records of a topic; empty if it does not exist.
    pub fn read_all(&self, topic: &str) -> Vec<Record> {
        self.read_from(topic, &BTreeMap::new())
    }

    /// All current records of a topic, in each partition from the given offset.
    pub fn read_from(&self, topic: &str, from: &BTreeMap<i32, i64>) -> Vec<Record> {
        let deadline = Instant::now() + 2 * TIMEOUT;
        let records = self.read_to_end(topic, COMMITTED, from, deadline);
        records.unwrap_or_default()
    }

    /// Like [`Kafka::read_from`], including records that are not committed or were aborted.
    pub fn read_uncommitted_from(&self, topic: &str, from: &BTreeMap<i32, i64>) -> Vec<Record> {
        let deadline = Instant::now() + 2 * TIMEOUT;
        let records = self.read_to_end(topic, "read_uncommitted", from, deadline);
        records.unwrap_or_default()
    }

    /// All records from each partition's offset, or its beginning, to its end; `None` if the topic does not exist or
    /// the broker does not answer.
    fn read_to_end(
        &self,
        topic: &str,
        isolation: &str,
        from: &BTreeMap<i32, i64>,
        deadline: Instant,
    ) -> Option<Vec<Record>> {
        let consumer: BaseConsumer = client_config(&self.bootstrap_servers())
            .set("group.id", "rig")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "10")
            .set("isolation.level", isolation)
            // If records were deleted, the offset to read from may be before the first one.
            .set("auto.offset.reset", "earliest")
            .create()
            .expect("cannot create a consumer");
        let metadata = consumer
            .fetch_metadata(Some(topic), Duration::from_secs(2))
            .ok()?;
        let mut unread: BTreeSet<i32> = metadata.topics()[0]
            .partitions()
            .iter()
            .map(rdkafka::metadata::MetadataPartition::id)
            .collect();
        if unread.is_empty() {
            return None;
        }
        let mut assignment = TopicPartitionList::new();
        for partition in &unread {
            let from = from
                .get(partition)
                .map_or(Offset::Beginning, |at| Offset::Offset(*at));
            assignment
                .add_partition_offset(topic, *partition, from)
                .expect("cannot set an offset");
        }
        consumer.assign(&assignment).expect("cannot assign");

        let mut records = Vec::new();
        while !unread.is_empty() && Instant::now() < deadline {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => records.push(Record::new(&message)),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    unread.remove(&partition);
                }
                // The consumer retries by itself.
                Some(Err(_)) | None => {}
            }
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        unread.is_empty().then_some(records)
    }
}

impl Record {
    fn new(message: &BorrowedMessage<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        Self {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(text),
            headers: headers
                .map(|h| (h.key.to_owned(), h.value.map(text).unwrap_or_default()))
                .collect(),
            payload: message.payload().unwrap_or_default().to_vec(),
        }
    }

    /// The event in structured form, whichever content mode the record has.
    pub fn event(&self) -> Value {
        let value = serde_json::from_slice(&self.payload).expect("a value is not JSON");
        if self.header("content-type") == Some("application/cloudevents+json") {
            return value;
        }
        let mut event = json!({"datacontenttype": self.header("content-type"), "data": value});
        for (name, value) in &self.headers {
            if let Some(name) = name.strip_prefix("ce_") {
                event[name] = json!(value);
            }
        }
        event
    }

    /// The value of a header, if exactly one has that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}
