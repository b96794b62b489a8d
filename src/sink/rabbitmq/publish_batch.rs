//! Publishes one batch on one channel: publishes its messages, waits for every confirm, then matches returned messages.
//!
//! lapin attaches a returned message to whichever confirm completes next, so the message attached to a confirm is not
//! necessarily the one that it confirms. But once every confirm of a channel has completed, every returned message is
//! attached to one of them. Only then are they matched, by `message_id`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ChannelId;
use lapin::{Channel, Confirmation, Connection, Error};
use tokio::time::Instant;
use uuid::Uuid;

use super::channel::open_channel;
use super::config::Config;
use super::message;
use crate::event::Seq;
use crate::sink::Delivery;

/// The outcome of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PublishOutcome {
    Confirmed,
    /// The message could not be routed to a queue; the broker's explanation.
    Returned(String),
    /// The broker could not accept the message now.
    Nacked,
}

/// A finished batch.
#[derive(Debug)]
pub(super) struct PublishBatch {
    /// The channel that it was published on.
    pub(super) id: ChannelId,
    /// The channel for the next batch.
    pub(super) channel: Channel,
    pub(super) outcomes: Result<Vec<(Seq, PublishOutcome)>, Error>,
}

/// When a batch last made progress. Its confirms are awaited in the order of its messages, so it makes none while the
/// oldest one is missing.
#[derive(Debug, Clone)]
pub(super) struct Heartbeat(Arc<Mutex<Instant>>);

impl Heartbeat {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(super) fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub(super) fn silence(&self) -> Duration {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }
}

pub(super) async fn run(
    connection: Arc<Connection>,
    channel: Channel,
    deliveries: Vec<Delivery>,
    config: Config,
    heartbeat: Heartbeat,
) -> PublishBatch {
    let id = channel.id();
    let outcomes = publish(&channel, &deliveries, &config, &heartbeat).await;
    let nacked = |(_, outcome): &(Seq, PublishOutcome)| *outcome == PublishOutcome::Nacked;
    let channel = match &outcomes {
        Ok(outcomes) if outcomes.iter().any(nacked) => replace(&connection, channel).await,
        _ => channel,
    };
    PublishBatch {
        id,
        channel,
        outcomes,
    }
}

/// Replaces a channel after a nack. A channel notified that a quorum queue is full may never learn that the queue has
/// capacity again: RabbitMQ 3.10 does not notify it if the limit is lifted by clearing the policy. A new channel asks
/// the queue itself.
async fn replace(connection: &Connection, channel: Channel) -> Channel {
    let _ = channel.close(200, "OK".into()).await;
    // If no channel can be opened, the connection is lost, and the next batch on the old channel reports that.
    open_channel(connection).await.unwrap_or(channel)
}

async fn publish(
    channel: &Channel,
    deliveries: &[Delivery],
    config: &Config,
    heartbeat: &Heartbeat,
) -> Result<Vec<(Seq, PublishOutcome)>, Error> {
    // `mandatory`: the broker returns a message that it cannot route, instead of dropping it.
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let mut confirms = Vec::with_capacity(deliveries.len());
    let mut failure = None;
    for delivery in deliveries {
        let (exchange, routing_key) = message::destination(delivery, config);
        let properties = message::properties(delivery);
        let body = &delivery.event.body;
        let published = channel
            .basic_publish(exchange, routing_key, options, body, properties)
            .await;
        match published {
            Ok(confirm) => confirms.push(confirm),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    let mut confirmed = Vec::with_capacity(confirms.len());
    // Await the confirms even if a publish failed: one of them may carry the broker's reason.
    for confirm in confirms {
        match confirm.await {
            Ok(confirm) => confirmed.push(confirm),
            // Only a pending confirm gets the broker's reason for closing the channel; later calls only report
            // that it is closed.
            Err(error) if error.is_amqp_error() => return Err(error),
            Err(error) => failure = Some(error),
        }
        heartbeat.beat();
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(match_confirms(deliveries, confirmed)),
    }
}

/// Matches messages with their confirms by order, and with returned messages by id.
fn match_confirms(
    deliveries: &[Delivery],
    confirms: Vec<Confirmation>,
) -> Vec<(Seq, PublishOutcome)> {
    let mut returned = HashMap::new();
    let acked: Vec<bool> = confirms
        .into_iter()
        .map(|confirm| {
            let acked = confirm.is_ack();
            if let Some(message) = confirm.take_message()
                && let Some(id) = id(&message)
            {
                returned.insert(id, explain(&message));
            }
            acked
        })
        .collect();
    deliveries
        .iter()
        .zip(acked)
        .map(|(delivery, acked)| {
            let outcome = match returned.get(&delivery.event.id).cloned() {
                Some(reason) => PublishOutcome::Returned(reason),
                None if acked => PublishOutcome::Confirmed,
                None => PublishOutcome::Nacked,
            };
            (delivery.seq, outcome)
        })
        .collect()
}

fn id(message: &BasicReturnMessage) -> Option<Uuid> {
    let id = message.properties.message_id().as_ref()?;
    id.as_str().parse().ok()
}

fn explain(message: &BasicReturnMessage) -> String {
    format!(
        "{} (exchange {:?}, routing key {:?})",
        message.reply_text,
        message.delivery.exchange.as_str(),
        message.delivery.routing_key.as_str()
    )
}
