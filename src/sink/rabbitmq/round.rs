//! One round on one channel: publish, wait for every confirm, match what was returned.
//!
//! lapin hands a returned message to whichever confirm completes next, so the message that a confirm
//! carries says nothing about the one that it confirms. Once every confirm of a channel has completed,
//! though, every returned message has been handed to one of them: then, and only then, are they matched,
//! by `message_id`.

use std::collections::HashMap;

use futures_util::future::join_all;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, Error};

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
    pub(super) channel: Channel,
    pub(super) outcomes: Result<Vec<(Message, Outcome)>, Error>,
}

pub(super) async fn run(channel: Channel, messages: Vec<Message>) -> Round {
    let outcomes = publish(&channel, messages).await;
    Round { channel, outcomes }
}

async fn publish(
    channel: &Channel,
    messages: Vec<Message>,
) -> Result<Vec<(Message, Outcome)>, Error> {
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let mut confirms = Vec::with_capacity(messages.len());
    for message in &messages {
        let confirm = channel
            .basic_publish(
                message.exchange.clone(),
                message.routing_key.clone(),
                options,
                &message.body,
                message.properties.clone(),
            )
            .await?;
        confirms.push(confirm);
    }
    let confirms: Vec<Confirmation> = join_all(confirms)
        .await
        .into_iter()
        .collect::<Result<_, _>>()?;
    Ok(settle(messages, confirms))
}

/// Matches messages with their confirms, by order, and with what was returned, by id.
fn settle(messages: Vec<Message>, confirms: Vec<Confirmation>) -> Vec<(Message, Outcome)> {
    let mut returned = HashMap::new();
    let acked: Vec<bool> = confirms
        .into_iter()
        .map(|confirm| {
            let acked = confirm.is_ack();
            if let Some(message) = confirm.take_message() {
                returned.insert(id(&message), explain(&message));
            }
            acked
        })
        .collect();
    messages
        .into_iter()
        .zip(acked)
        .map(|(message, acked)| {
            let outcome = match returned.remove(&message.id) {
                Some(reason) => Outcome::Returned(reason),
                None if acked => Outcome::Confirmed,
                None => Outcome::Nacked,
            };
            (message, outcome)
        })
        .collect()
}

fn id(message: &BasicReturnMessage) -> String {
    let id = message.properties.message_id();
    id.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn explain(message: &BasicReturnMessage) -> String {
    format!(
        "{} (exchange {:?}, routing key {:?})",
        message.reply_text,
        message.delivery.exchange.as_str(),
        message.delivery.routing_key.as_str()
    )
}
