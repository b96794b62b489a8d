//! Finds the record of an event in the cluster.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use rdkafka::Offset;
use rdkafka::message::{BorrowedMessage, Message as _};
use uuid::Uuid;

use super::consumer::{Polled, TopicConsumer};
use super::event_bytes::has_id;
use super::partition_state::partition_of;
use super::{Config, REQUEST_TIMEOUT};
use crate::event::UnixMillis;

/// How far the clocks of the brokers and of the relay may differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// The longest poll; after it, the deadline is checked.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// The place of a record in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The topic: that of events, or that of dead letters.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The record's time, if it has one.
    pub time: Option<UnixMillis>,
}

/// Finds the first record of an event that was published at `not_before` or later; none if the cluster does not have it
/// (any more). `conversation` is the event's `partitionkey`. Reads committed records only, up to the end that each
/// partition has when the search comes to it. Needs the rights `Describe` and `Read` on both topics. Blocks.
///
/// # Errors
/// The cluster cannot be reached, the user may not read a topic, or the search takes longer than `timeout`.
pub fn find(
    config: &Config,
    id: Uuid,
    conversation: &str,
    not_before: UnixMillis,
    timeout: Duration,
) -> anyhow::Result<Option<Place>> {
    let skew = i64::try_from(CLOCK_SKEW.as_millis()).unwrap_or(i64::MAX);
    let search = Search {
        consumer: TopicConsumer::new(config)?,
        id,
        since: (not_before.as_millis() - skew).max(0),
        deadline: Instant::now() + timeout,
        timeout,
    };
    for topic in [&config.topic, &config.dead_letter_topic] {
        if let Some(place) = search.topic(topic, conversation)? {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

struct Search {
    consumer: TopicConsumer,
    id: Uuid,
    /// Unix milliseconds.
    since: i64,
    deadline: Instant,
    timeout: Duration,
}

impl Search {
    fn topic(&self, topic: &str, conversation: &str) -> anyhow::Result<Option<Place>> {
        let timeout = self.request_timeout(topic)?;
        let Some(count) = self.consumer.partition_count(topic, timeout)? else {
            return Ok(None);
        };
        let expected = partition_of(conversation.as_bytes(), count);
        if let Some(place) = self.partitions(topic, &[expected])? {
            return Ok(Some(place));
        }
        // When the event was published, the topic may have had fewer partitions.
        let others: Vec<i32> = (0..count)
            .filter(|partition| *partition != expected)
            .collect();
        if others.is_empty() {
            return Ok(None);
        }
        self.partitions(topic, &others)
    }

    fn partitions(&self, topic: &str, partitions: &[i32]) -> anyhow::Result<Option<Place>> {
        let consumer = &self.consumer;
        let timeout = self.request_timeout(topic)?;
        let mut unread = consumer.offsets(topic, partitions, Some(self.since), timeout)?;
        unread.retain(|_, range| !range.is_empty());
        let total = records(&unread);
        let from = unread.iter();
        consumer.assign(
            topic,
            from.map(|(partition, range)| (*partition, Offset::Offset(range.start))),
        )?;
        while !unread.is_empty() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let read = total - records(&unread);
                return Err(self.timed_out(topic, &format!("read {read} of {total} offsets")));
            }
            match consumer.poll(topic, left.min(POLL_TIMEOUT))? {
                Polled::Record(record) => {
                    let (partition, offset) = (record.partition(), record.offset());
                    if record.topic() == topic && self.matches(&record) {
                        return Ok(Some(place(&record)));
                    }
                    let is_last = unread.get_mut(&partition).is_some_and(|range| {
                        range.start = offset + 1;
                        range.is_empty()
                    });
                    if is_last {
                        unread.remove(&partition);
                    }
                }
                // The last offsets may be of markers of transactions, or of records that were deleted.
                Polled::End(partition) => drop(unread.remove(&partition)),
                Polled::Problem(_) | Polled::Nothing => {}
            }
        }
        Ok(None)
    }

    fn matches(&self, record: &BorrowedMessage<'_>) -> bool {
        has_id(record.headers(), record.payload(), self.id)
    }

    fn request_timeout(&self, topic: &str) -> anyhow::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(self.timed_out(topic, "did not begin to read it"));
        }
        Ok(left.min(REQUEST_TIMEOUT))
    }

    fn timed_out(&self, topic: &str, progress: &str) -> anyhow::Error {
        let seconds = self.timeout.as_secs_f64();
        let reason = self.consumer.last_error();
        let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        anyhow!("searching topic {topic} took longer than {seconds} s: {progress}{reason}")
    }
}

/// How many offsets are to be read.
fn records(unread: &BTreeMap<i32, Range<i64>>) -> i64 {
    unread.values().map(|range| range.end - range.start).sum()
}

fn place(record: &BorrowedMessage<'_>) -> Place {
    let millis = record.timestamp().to_millis();
    Place {
        topic: record.topic().to_owned(),
        partition: record.partition(),
        offset: record.offset(),
        time: millis
            .and_then(|millis| u64::try_from(millis).ok())
            .and_then(UnixMillis::new),
    }
}
