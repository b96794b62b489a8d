//! Subscribes to the events' exchange, for people who want to see events as they come.
//!
//! The subscription has a queue of its own, so it takes no event from anybody. But it makes an event count as routed:
//! if no other queue is bound, the broker confirms an event that only this temporary queue has.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::channel::explain;
use super::config::Config;
use super::connect::{CONNECT_TIMEOUT, host, open_connection};
use super::socket::ShutdownOnDrop;
use crate::sink::{SessionError, SubscriptionItem};

/// How many events, and how many bytes of them, the queue keeps if they are not read fast enough; then it drops the
/// oldest ones.
const MAX_LENGTH: i32 = 10_000;
const MAX_LENGTH_BYTES: i32 = 64 << 20;

/// How many events the broker sends before one is acknowledged.
const PREFETCH: u16 = 100;

/// How long a request to the broker may take, and how long a graceful close may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Reports the messages of the events' exchange until `stop` is cancelled or `items` is closed. If they are read too
/// slowly, the oldest ones are dropped.
///
/// With `require_own_queue`, it refuses to subscribe if the relay has no queue of its own.
///
/// # Errors
/// No broker can be reached, the user lacks a right, or the connection was lost.
pub async fn subscribe(
    config: &Config,
    require_own_queue: bool,
    items: &mpsc::Sender<SubscriptionItem>,
    stop: &CancellationToken,
) -> Result<(), SessionError> {
    if require_own_queue && config.queue.is_empty() {
        return Err(refused(
            "the relay has no queue of its own (rabbitmq.queue is empty)",
        ));
    }
    let (connection, shutdown, host) = connect(config).await?;
    let preparing = prepare(config, require_own_queue, &connection);
    let prepared = timeout(REQUEST_TIMEOUT, preparing).await;
    let (mut consumer, queue) = prepared.unwrap_or_else(|elapsed| {
        let action = format!("subscribing at {host} took too long");
        Err(SessionError::unavailable(action, elapsed))
    })?;
    let exchange = &config.exchange;
    let subscribed = format!(
        "exchange {exchange} of RabbitMQ at {host}, from now, by the temporary queue {queue}"
    );
    let mut is_open = items
        .send(SubscriptionItem::Subscribed(subscribed))
        .await
        .is_ok();
    while is_open {
        let next = tokio::select! {
            next = consumer.next() => next,
            () = stop.cancelled() => break,
        };
        let delivery = match next {
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) => {
                let action = format!("lost the connection to {host}");
                return Err(SessionError::unavailable(action, error));
            }
            None => {
                let reason = format!("lost queue {queue} at {host}: it was deleted");
                return Err(SessionError::Unavailable(reason, None));
            }
        };
        let acker = delivery.acker;
        let item = SubscriptionItem::Message {
            place: format!("message with routing key {}", delivery.routing_key),
            event: Ok(delivery.data),
        };
        is_open = items.send(item).await.is_ok();
        // If this fails, the next delivery is the error.
        let _ = acker.ack(BasicAckOptions::default()).await;
    }
    let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "OK".into())).await;
    drop(shutdown);
    Ok(())
}

fn refused(reason: &str) -> SessionError {
    let reason = format!(
        "{reason}: while `tail` listens, RabbitMQ would confirm events that only its temporary queue has, and they \
         would be lost if no other queue is bound; use --force if other queues are bound"
    );
    SessionError::Unavailable(reason, None)
}

/// Connects to the first host that accepts it.
async fn connect(config: &Config) -> Result<(Connection, ShutdownOnDrop, String), SessionError> {
    let mut last = SessionError::Unavailable("rabbitmq.uri names no host".to_owned(), None);
    for uri in config.uri.iter().map(super::BrokerUri::parts) {
        match open_connection(config, uri.clone(), CONNECT_TIMEOUT).await {
            Ok((connection, shutdown)) => return Ok((connection, shutdown, host(uri))),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Declares the temporary queue, binds it and consumes from it. Returns its name, too.
async fn prepare(
    config: &Config,
    require_own_queue: bool,
    connection: &Connection,
) -> Result<(Consumer, String), SessionError> {
    let exchange = &config.exchange;
    let failed = |right: &'static str, resource: String| {
        move |error: lapin::Error| {
            SessionError::Unavailable(explain(&error, right, &resource), None)
        }
    };
    let channel = connection
        .create_channel()
        .await
        .map_err(|error| SessionError::unavailable("could not open a channel", error))?;
    if require_own_queue {
        check_own_queue(config, &channel).await?;
    }
    let queue = queue_name(&exchange.to_string(), Uuid::new_v4());
    let name = ShortString::from(queue.as_str());
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(name.clone(), options, arguments())
        .await
        .map_err(failed("configure", format!("queue {queue}")))?;
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    let resource = format!("queue {queue}, or read on exchange {exchange}");
    channel
        .queue_bind(name.clone(), exchange.as_amqp(), "#".into(), options, none)
        .await
        .map_err(failed("write", resource))?;
    channel
        .basic_qos(PREFETCH, BasicQosOptions::default())
        .await
        .map_err(failed("read", format!("queue {queue}")))?;
    let options = BasicConsumeOptions {
        exclusive: true,
        ..BasicConsumeOptions::default()
    };
    let consumer = channel
        .basic_consume(name, "".into(), options, FieldTable::default())
        .await
        .map_err(failed("read", format!("queue {queue}")))?;
    Ok((consumer, queue))
}

/// Checks that the relay's own queue exists; it may have been deleted since the relay has declared it.
async fn check_own_queue(config: &Config, channel: &Channel) -> Result<(), SessionError> {
    let passive = QueueDeclareOptions {
        durable: true,
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let queue = config.queue.as_amqp();
    let declared = channel.queue_declare(queue, passive, FieldTable::default());
    declared.await.map(drop).map_err(|error| {
        let resource = format!("queue {}", config.queue);
        let reason = explain(&error, "read", &resource);
        refused(&format!("the relay's own queue cannot be used ({reason})"))
    })
}

/// The queue's arguments. They prevail over policies for the relay's queues: with `reject-publish`, the full queue of
/// a slow reader would keep the relay from publishing.
fn arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    for (name, value) in [("x-queue-type", "classic"), ("x-overflow", "drop-head")] {
        arguments.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
    }
    for (name, value) in [
        ("x-max-length", MAX_LENGTH),
        ("x-max-length-bytes", MAX_LENGTH_BYTES),
    ] {
        arguments.insert(name.into(), AMQPValue::LongInt(value));
    }
    arguments
}

/// `<exchange>.tail.<random>`, of at most 255 bytes.
fn queue_name(exchange: &str, random: Uuid) -> String {
    let mut suffix = format!(".tail.{}", random.simple());
    suffix.truncate(".tail.".len() + 12);
    let exchange = &exchange[..exchange.floor_char_boundary(255 - suffix.len())];
    format!("{exchange}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_has_a_name_of_the_exchange_that_fits() {
        let random = Uuid::from_u128(0x0123_4567_89ab_cdef << 64);
        assert_eq!(queue_name("e", random), "e.tail.0123456789ab");
        let long = queue_name(&"é".repeat(127), random);
        assert!(long.ends_with("é.tail.0123456789ab"), "{long}");
        assert_eq!(long.len(), 254);
    }
}
