//! Consumes messages as a subscriber does, without the relay's code.

use std::error::Error;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::message::Delivery as Raw;
use lapin::options::{BasicAckOptions, BasicConsumeOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use tokio::time::timeout;

use super::super::broker::header;
use super::super::node::{block_on, poll};
use super::{RabbitMq, close, connect};

/// How long a node may take to answer or to send an expected message.
const ATTEMPT: Duration = Duration::from_secs(3);

/// A queue that sends nothing for this long is empty.
const SILENCE: Duration = Duration::from_millis(500);

/// An event as a subscriber receives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub exchange: String,
    pub routing_key: String,
    pub redelivered: bool,
    pub message_id: Option<String>,
    /// The property `type`.
    pub kind: Option<String>,
    pub content_type: Option<String>,
    pub persistent: bool,
    /// In seconds.
    pub timestamp: Option<u64>,
    pub app_id: Option<String>,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl RabbitMq {
    /// Consumes all current messages of a queue, in order; none if it does not exist.
    pub fn drain(&self, queue: &str) -> Vec<Delivery> {
        let uri = self.uri();
        let mut deliveries = Vec::new();
        let taken = block_on(async || take(&uri, queue, 0, &mut deliveries).await);
        if let Err(error) = taken {
            eprintln!("could not read {queue} to its end: {error}");
        }
        deliveries
    }

    /// Consumes all messages of a queue, in order; waits until there are at least `expected_at_least`.
    ///
    /// # Panics
    ///
    /// If there are fewer when `timeout` ends.
    pub fn read(&self, queue: &str, expected_at_least: usize, timeout: Duration) -> Vec<Delivery> {
        let uri = self.uri();
        let mut deliveries = Vec::new();
        let mut last_error = None;
        let enough = poll(timeout, || {
            // The queue or the node may not exist yet.
            let taken =
                block_on(async || take(&uri, queue, expected_at_least, &mut deliveries).await);
            last_error = taken.err().map(|error| error.to_string());
            deliveries.len() >= expected_at_least
        });
        assert!(
            enough,
            "{queue} has {} of {expected_at_least} messages after {timeout:?} ({last_error:?}): {deliveries:#?}",
            deliveries.len(),
        );
        deliveries
    }
}

/// Consumes the queue's current messages, and acknowledges each, because a quorum queue delivers at most 2000
/// unacknowledged ones. No timeout interrupts an acknowledgement.
async fn take(
    uri: &str,
    queue: &str,
    enough: usize,
    deliveries: &mut Vec<Delivery>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let connection = timeout(ATTEMPT, connect(uri)).await??;
    let channel = timeout(ATTEMPT, connection.create_channel()).await??;
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let consumer = channel.basic_consume(queue.into(), "rig".into(), options, none);
    let mut consumer = timeout(ATTEMPT, consumer).await??;
    loop {
        let limit = if deliveries.len() >= enough {
            SILENCE
        } else {
            ATTEMPT
        };
        let Ok(Some(message)) = timeout(limit, consumer.next()).await else {
            break;
        };
        let message = message?;
        let acker = message.acker.clone();
        deliveries.push(Delivery::new(message));
        acker.ack(BasicAckOptions::default()).await?;
    }
    close(connection).await;
    Ok(())
}

impl Delivery {
    /// The value of a header, if exactly one has that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    fn new(raw: Raw) -> Self {
        let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
        let properties = &raw.properties;
        let headers = properties.headers().iter().flat_map(FieldTable::inner);
        Self {
            exchange: raw.exchange.to_string(),
            routing_key: raw.routing_key.to_string(),
            redelivered: raw.redelivered,
            message_id: text(properties.message_id()),
            kind: text(properties.kind()),
            content_type: text(properties.content_type()),
            persistent: *properties.delivery_mode() == Some(2),
            timestamp: *properties.timestamp(),
            app_id: text(properties.app_id()),
            headers: headers
                .map(|(name, value)| (name.to_string(), header_value(value)))
                .collect(),
            body: raw.data,
        }
    }
}

fn header_value(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => text.to_string(),
        AMQPValue::ShortString(text) => text.to_string(),
        other => format!("{other:?}"),
    }
}
