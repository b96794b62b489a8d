//! Connecting to one host, and making sure of exchange, queues and binding.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use lapin::options::{
    ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::time::{sleep, timeout};

use super::session::{CHANNELS, RabbitMqSession};
use super::{Config, Start, Tls};
use crate::sink::{BoxError, SessionError};

/// How long connecting, opening channels and declaring may take. lapin's own limit covers TCP alone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// A node that has just started elects leaders for its quorum queues half a second after it accepts
/// connections, and RabbitMQ 3.10 never does if a client was quicker (rabbitmq-server issue 10070). So
/// whoever comes back leaves it that time.
const SETTLE: Duration = Duration::from_secs(1);

pub(super) async fn open(
    config: &Config,
    uri: AMQPUri,
    start: Start,
    has_confirmed: Arc<AtomicBool>,
) -> Result<RabbitMqSession, SessionError> {
    let host = format!("{}:{}", uri.authority.host, uri.authority.port);
    let opening = async {
        let tls = tls(&config.tls).await?;
        let properties =
            ConnectionProperties::default().with_connection_name(LongString::from("recall-relay"));
        let runtime = lapin::runtime::default_runtime()?;
        let connection = Connection::connect_uri_with_config(uri, properties, tls, runtime).await?;
        if start == Start::Again {
            sleep(SETTLE).await;
        }
        let mut channels = Vec::with_capacity(CHANNELS);
        for _ in 0..CHANNELS {
            let channel = connection.create_channel().await?;
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await?;
            channels.push(channel);
        }
        if config.declare
            && let Some(channel) = channels.first()
        {
            declare(config, channel).await?;
        }
        Ok::<_, BoxError>(RabbitMqSession::new(
            config.clone(),
            connection,
            channels,
            has_confirmed,
        ))
    };
    match timeout(CONNECT_TIMEOUT, opening).await {
        Ok(Ok(session)) => Ok(session),
        Ok(Err(error)) => Err(SessionError::unavailable(
            format!("could not connect to {host}"),
            error,
        )),
        Err(elapsed) => Err(SessionError::unavailable(
            format!(
                "connecting to {host} took longer than {} s",
                CONNECT_TIMEOUT.as_secs()
            ),
            elapsed,
        )),
    }
}

async fn declare(config: &Config, channel: &Channel) -> lapin::Result<()> {
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let exchange = config.exchange.as_amqp();
    channel
        .exchange_declare(
            exchange.clone(),
            ExchangeKind::Topic,
            durable,
            FieldTable::default(),
        )
        .await?;
    for queue in [&config.queue, &config.dead_letter_queue] {
        if queue.is_empty() {
            continue;
        }
        let durable = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        // No other argument: the rest is for policies, and a queue that is declared with other
        // arguments than it has is an error.
        let mut arguments = FieldTable::default();
        let quorum = AMQPValue::LongString(LongString::from("quorum"));
        arguments.insert("x-queue-type".into(), quorum);
        channel
            .queue_declare(queue.as_amqp(), durable, arguments)
            .await?;
    }
    if !config.queue.is_empty() {
        channel
            .queue_bind(
                config.queue.as_amqp(),
                exchange,
                "#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
    }
    Ok(())
}

async fn tls(config: &Tls) -> Result<OwnedTLSConfig, BoxError> {
    let cert_chain = match &config.ca {
        Some(path) => Some(String::from_utf8(read(path).await?)?),
        None => None,
    };
    let identity = match (&config.cert, &config.key) {
        (Some(cert), Some(key)) => Some(OwnedIdentity::PKCS8 {
            pem: read(cert).await?,
            key: read(key).await?,
        }),
        _ => None,
    };
    Ok(OwnedTLSConfig {
        identity,
        cert_chain,
    })
}

async fn read(path: &Path) -> Result<Vec<u8>, BoxError> {
    let owned = path.to_owned();
    let content = tokio::task::spawn_blocking(move || std::fs::read(owned)).await?;
    content.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("could not read {}: {error}", path.display()),
        )
        .into()
    })
}
