//! The throughput of lapin alone: a publisher with confirms and as many messages in flight as the relay, without
//! per-key ordering. Measurements with more channels were not faster.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
};
use recall_relay::event::{CONTENT_TYPE, Event};
use tokio::task::JoinSet;

use super::backlog::event;
use super::rig::RabbitMq;

const CHANNELS: usize = 4;

/// The maximum of unconfirmed messages per channel.
const WINDOW: usize = 500;

const ROUTING_KEY: &str = "1400000001.group.Public";

/// Publishes `events` events of a backlog through a topic exchange to a quorum queue, both called `name`; returns the
/// confirms per second after the first one.
pub fn publish(rabbitmq: &RabbitMq, name: &str, events: u64) -> f64 {
    let mut shares: Vec<Vec<(Event, BasicProperties)>> = vec![Vec::new(); CHANNELS];
    for (number, share) in (0..events).zip((0..CHANNELS).cycle()) {
        let event = event(number);
        let properties = properties(&event);
        shares[share].push((event, properties));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let (uri, first) = (rabbitmq.uri(), Arc::new(OnceLock::new()));
    runtime.expect("cannot start a runtime").block_on(async {
        let connection = Connection::connect(&uri, ConnectionProperties::default()).await;
        let connection = connection.expect("cannot connect");
        let channel = connection
            .create_channel()
            .await
            .expect("cannot open a channel");
        declare(&channel, name)
            .await
            .expect("cannot declare the exchange and the queue");
        let mut channels = JoinSet::new();
        for share in shares {
            let channel = connection
                .create_channel()
                .await
                .expect("cannot open a channel");
            let options = ConfirmSelectOptions::default();
            channel
                .confirm_select(options)
                .await
                .expect("cannot enable confirms");
            channels.spawn(publish_share(
                channel,
                name.to_owned(),
                share,
                Arc::clone(&first),
            ));
        }
        channels.join_all().await;
    });
    let first: &Instant = first.get().expect("no message was confirmed");
    (events - 1) as f64 / first.elapsed().as_secs_f64()
}

async fn publish_share(
    channel: Channel,
    exchange: String,
    share: Vec<(Event, BasicProperties)>,
    first: Arc<OnceLock<Instant>>,
) {
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let mut in_flight = VecDeque::with_capacity(WINDOW);
    for (event, properties) in share {
        if in_flight.len() == WINDOW
            && let Some(oldest) = in_flight.pop_front()
        {
            await_confirm(oldest, &first).await;
        }
        let (exchange, key) = (exchange.as_str().into(), ROUTING_KEY.into());
        let published = channel.basic_publish(exchange, key, options, &event.body, properties);
        in_flight.push_back(published.await.expect("cannot publish"));
    }
    for confirm in in_flight {
        await_confirm(confirm, &first).await;
    }
}

async fn await_confirm(
    confirm: impl Future<Output = lapin::Result<Confirmation>>,
    first: &OnceLock<Instant>,
) {
    let confirm = confirm.await.expect("no confirm");
    assert!(matches!(confirm, Confirmation::Ack(None)), "{confirm:?}");
    first.get_or_init(Instant::now);
}

async fn declare(channel: &Channel, name: &str) -> lapin::Result<()> {
    let none = FieldTable::default;
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    channel
        .exchange_declare(name.into(), ExchangeKind::Topic, durable, none())
        .await?;
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let mut quorum = FieldTable::default();
    quorum.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    channel.queue_declare(name.into(), durable, quorum).await?;
    let options = QueueBindOptions::default();
    channel
        .queue_bind(name.into(), name.into(), "#".into(), options, none())
        .await
}

/// The same properties as the relay's messages.
fn properties(event: &Event) -> BasicProperties {
    BasicProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_delivery_mode(2)
        .with_message_id(event.id.to_string().into())
        .with_app_id("recall-relay".into())
        .with_type(event.kind.event_type().into())
        .with_timestamp(event.time.as_millis().unsigned_abs() / 1000)
}
