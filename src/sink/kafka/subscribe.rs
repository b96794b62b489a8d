//! Subscribes to the events' topic, for people who want to see events as they come.

use std::borrow::Cow;
use std::time::Duration;

use rdkafka::Offset;
use rdkafka::message::{BorrowedMessage, Message as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::consumer::{Polled, TopicConsumer};
use super::event_bytes::event_bytes;
use super::{Config, REQUEST_TIMEOUT};
use crate::event::UnixMillis;
use crate::sink::{SessionError, SubscriptionItem};

/// How long a poll may take; after it, the stop is checked.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// The first event that a subscription reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// The next one that is published.
    Now,
    /// The first one whose record has this time or a later one.
    Time(UnixMillis),
    /// The oldest one that the cluster keeps.
    Beginning,
}

impl std::fmt::Display for StartAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Now => f.write_str("now"),
            Self::Time(time) => time.fmt(f),
            Self::Beginning => f.write_str("the beginning"),
        }
    }
}

/// Reports the records of the events' topic until `stop` is cancelled or `items` is closed. It reads the partitions
/// that the topic has now; order is kept within each. If a connection is lost, it goes on when the cluster is back.
/// Blocks.
///
/// # Errors
/// The cluster cannot be reached at first, the topic does not exist, or the user may not read it.
pub fn subscribe(
    config: &Config,
    start: StartAt,
    items: &mpsc::Sender<SubscriptionItem>,
    stop: &CancellationToken,
) -> Result<(), SessionError> {
    let topic = config.topic.as_str();
    let consumer = TopicConsumer::new(config)?;
    let Some(count) = consumer.partition_count(topic, REQUEST_TIMEOUT)? else {
        let reason =
            format!("topic {topic} does not exist (kafka.topic); start the relay, or create it");
        return Err(SessionError::Unavailable(reason, None));
    };
    consumer.assign(topic, positions(&consumer, topic, count, start)?)?;
    let mut subscribed = Some(SubscriptionItem::Subscribed(format!(
        "topic {topic} ({count} partitions) of the Kafka cluster at {}, from {start}",
        config.bootstrap_servers
    )));
    let mut problem = None;
    while !stop.is_cancelled() {
        let polled = consumer.poll(topic, POLL_TIMEOUT)?;
        let mut news = Vec::new();
        // The user may read the topic: the first answer shows that.
        if matches!(polled, Polled::Record(_) | Polled::End(_)) {
            problem = None;
            news.extend(subscribed.take());
        }
        if let Some(changed) = consumer.unreadable_changed() {
            let text = describe(&consumer, topic, changed);
            news.push(SubscriptionItem::Notice(text));
        }
        match polled {
            Polled::Record(record) => news.push(message(&record)),
            // It recurs until it is repaired.
            Polled::Problem(code) if problem.replace(code) != Some(code) => {
                let reason = consumer.last_error().unwrap_or_else(|| code.to_string());
                news.push(SubscriptionItem::Notice(reason));
            }
            Polled::Problem(_) | Polled::End(_) | Polled::Nothing => {}
        }
        for item in news {
            if items.blocking_send(item).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The first offset to read in each partition.
fn positions(
    consumer: &TopicConsumer,
    topic: &str,
    count: i32,
    start: StartAt,
) -> Result<Vec<(i32, Offset)>, SessionError> {
    let since = match start {
        StartAt::Now => None,
        StartAt::Time(time) => Some(time.as_millis()),
        StartAt::Beginning => return Ok((0..count).map(|id| (id, Offset::Beginning)).collect()),
    };
    let partitions: Vec<i32> = (0..count).collect();
    let found = consumer.offsets(topic, &partitions, since, REQUEST_TIMEOUT)?;
    let starts = found.into_iter();
    Ok(starts
        .map(|(id, range)| (id, Offset::Offset(range.start)))
        .collect())
}

fn message(record: &BorrowedMessage<'_>) -> SubscriptionItem {
    let (partition, offset) = (record.partition(), record.offset());
    SubscriptionItem::Message {
        place: format!("record {offset} of partition {partition}"),
        event: event_bytes(record.headers(), record.payload()).map(Cow::into_owned),
    }
}

/// Describes that partitions cannot be read, or can be read again.
fn describe(
    consumer: &TopicConsumer,
    topic: &str,
    (unreadable, assigned): (usize, usize),
) -> String {
    if unreadable == 0 {
        return format!("all {assigned} partitions of topic {topic} can be read again");
    }
    let reason = consumer.last_error();
    let reason = reason.unwrap_or_else(|| "they have no leader".to_owned());
    format!(
        "cannot read {unreadable} of {assigned} partitions of topic {topic}, and will retry: {reason}"
    )
}
