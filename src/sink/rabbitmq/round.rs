//! One round on one channel: publish, wait for every confirm, match what was returned.
//!
//! lapin hands a returned message to whichever confirm completes next, so the message that a confirm
//! carries says nothing about the one that it confirms. Once every confirm of a channel has completed,
//! though, every returned message has been handed to one of them: then, and only then, are they matched,
//! by `message_id`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ChannelId;
use lapin::{Channel, Confirmation, Connection, Error};
use tokio::time::Instant;
use uuid::Uuid;

use super::connect;
use super::message::Message;

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Confirmed,
    /// No queue took it; what the broker said.
    Returned(String),
    /// The broker could not take it now.
    Nacked,
}

/// A round that is over.
#[derive(Debug)]
pub(super) struct Round {
    /// The channel that it had.
    pub(super) id: ChannelId,
    /// The one for the next round.
    pub(super) channel: Channel,
    pub(super) outcomes: Result<Vec<(Message, Outcome)>, Error>,
}

/// When a round last went on: its confirms are awaited in the order of its messages.
#[derive(Debug, Clone)]
pub(super) struct Pulse(Arc<Mutex<Instant>>);

impl Pulse {
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
    messages: Vec<Message>,
    pulse: Pulse,
) -> Round {
    let id = channel.id();
    let outcomes = publish(&channel, messages, &pulse).await;
    let nacked = |(_, outcome): &(Message, Outcome)| *outcome == Outcome::Nacked;
    let channel = match &outcomes {
        Ok(outcomes) if outcomes.iter().any(nacked) => replace(&connection, channel).await,
        _ => channel,
    };
    Round {
        id,
        channel,
        outcomes,
    }
}

/// A channel that was told once that a quorum queue is full may never hear that it has room again:
/// RabbitMQ 3.10 does not tell it when the queue's limit is lifted by clearing the policy. A new channel
/// asks the queue itself.
async fn replace(connection: &Connection, channel: Channel) -> Channel {
    let _ = channel.close(200, "OK".into()).await;
    // Where there is none the connection is lost, and the next round on the old one says so.
    connect::open_channel(connection).await.unwrap_or(channel)
}

async fn publish(
    channel: &Channel,
    messages: Vec<Message>,
    pulse: &Pulse,
) -> Result<Vec<(Message, Outcome)>, Error> {
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let mut confirms = Vec::with_capacity(messages.len());
    let mut failure = None;
    for message in &messages {
        let published = channel
            .basic_publish(
                message.exchange.clone(),
                message.routing_key.clone(),
                options,
                &message.body,
                message.properties(),
            )
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
    for confirm in confirms {
        match confirm.await {
            Ok(confirm) => confirmed.push(confirm),
            // Why the broker closed the channel is told to those who wait for a confirm; who comes later
            // only hears that it is closed.
            Err(error) if error.is_amqp_error() => return Err(error),
            Err(error) => failure = Some(error),
        }
        pulse.beat();
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(settle(messages, confirmed)),
    }
}

/// Matches messages with their confirms, by order, and with what was returned, by id.
fn settle(messages: Vec<Message>, confirms: Vec<Confirmation>) -> Vec<(Message, Outcome)> {
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
    messages
        .into_iter()
        .zip(acked)
        .map(|(message, acked)| {
            let outcome = match returned.get(&message.id).cloned() {
                Some(reason) => Outcome::Returned(reason),
                None if acked => Outcome::Confirmed,
                None => Outcome::Nacked,
            };
            (message, outcome)
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
