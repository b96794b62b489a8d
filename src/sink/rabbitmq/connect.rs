//! Connects to one host, and declares the exchange, the queues and the binding.

use std::path::Path;
use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::time::{sleep, timeout};

use super::channel::{self, CHANNELS, open_channel, open_channels};
use super::config::{Config, QueueType, ShortName};
use super::socket::{ShutdownOnDrop, SocketHandle};
use crate::setting::{self, ClientTls};
use crate::sink::{BoxError, SessionError};

/// How long connecting, opening channels and declaring may take. lapin's own timeout covers only TCP.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// A node that has just started elects leaders for its quorum queues half a second after it accepts connections.
/// RabbitMQ 3.10 never does if a client was faster (rabbitmq-server issue 10070). So wait this long after reconnecting.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Whether this is the first connection attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    First,
    Reconnect,
}

/// A connection whose exchange, queues and binding are declared.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) connection: Connection,
    pub(super) shutdown: ShutdownOnDrop,
    pub(super) channels: Vec<Channel>,
    /// Why the dead-letter queue cannot be used, if it cannot.
    pub(super) dead_letter_queue_error: Option<String>,
}

pub(super) async fn open(
    config: &Config,
    uri: AMQPUri,
    attempt: Attempt,
    limit: Duration,
) -> Result<Connected, SessionError> {
    let host = host(&uri);
    let opening = async {
        let tls = tls(&config.tls).await?;
        let mut wanted = CHANNELS;
        let mut connected = loop {
            let (connection, shutdown) = connect(uri.clone(), tls.clone(), limit).await?;
            if attempt == Attempt::Reconnect {
                sleep(RESTART_PAUSE).await;
            }
            let channels = open_channels(&connection, wanted).await?;
            if connection.status().connected() || channels.len() == wanted {
                break Connected {
                    connection,
                    shutdown,
                    channels,
                    dead_letter_queue_error: None,
                };
            }
            // The node closed the connection because of the user's limit: connect again with one channel less than that.
            wanted = (channels.len() - 1).max(1);
        };
        prepare(config, &mut connected).await?;
        Ok::<_, BoxError>(connected)
    };
    within(limit, &host, opening).await
}

/// Connects to one host. Opens no channel and declares nothing.
pub(super) async fn open_connection(
    config: &Config,
    uri: AMQPUri,
    limit: Duration,
) -> Result<(Connection, ShutdownOnDrop), SessionError> {
    let host = host(&uri);
    let opening = async {
        let tls = tls(&config.tls).await?;
        Ok(connect(uri, tls, limit).await?)
    };
    within(limit, &host, opening).await
}

/// The host and the port.
pub(super) fn host(uri: &AMQPUri) -> String {
    format!("{}:{}", uri.authority.host, uri.authority.port)
}

async fn within<T>(
    limit: Duration,
    host: &str,
    opening: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, SessionError> {
    match timeout(limit, opening).await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(error)) => Err(SessionError::unavailable(
            format!("could not connect to {host}"),
            error,
        )),
        Err(elapsed) => Err(SessionError::unavailable(
            format!(
                "connecting to {host} took longer than {} s",
                limit.as_secs()
            ),
            elapsed,
        )),
    }
}

/// Connects as lapin does, but keeps a handle to the socket. If this fails or is dropped, lapin's thread ends.
async fn connect(
    uri: AMQPUri,
    tls: OwnedTLSConfig,
    limit: Duration,
) -> lapin::Result<(Connection, ShutdownOnDrop)> {
    let properties =
        ConnectionProperties::default().with_connection_name(LongString::from("recall-relay"));
    let handle = SocketHandle::default();
    let shutdown = handle.shutdown_on_drop();
    let runtime = lapin::runtime::default_runtime()?;
    let connection = Connection::connector(
        uri,
        runtime,
        // This runs on the connection's own thread, so the timeout must also end it after the caller has stopped
        // waiting.
        async move |uri: AMQPUri, runtime| {
            let host = uri.authority.host.clone();
            let dialing = async {
                let address = runtime.to_socket_addrs((host.clone(), uri.authority.port));
                let stream = AsyncTcpStream::connect(&runtime, address).await?;
                if let AsyncTcpStream::Plain(socket) = &stream {
                    handle.keep(socket.get_ref())?;
                }
                match uri.scheme {
                    AMQPScheme::AMQP => Ok(stream),
                    AMQPScheme::AMQPS => stream.into_tls(&host, tls.as_ref()).await,
                }
            };
            let dialed = timeout(limit, dialing).await;
            Ok(dialed.unwrap_or_else(|elapsed| Err(elapsed.into()))?)
        },
        properties,
    )
    .await?;
    Ok((connection, shutdown))
}

/// Declares what the relay needs, or checks that it exists.
async fn prepare(config: &Config, connected: &mut Connected) -> Result<(), BoxError> {
    let Some(channel) = connected.channels.first_mut() else {
        return Ok(());
    };
    if config.declare {
        return declare(config, channel).await;
    }
    check(config, channel).await?;
    let queue = &config.dead_letter_queue;
    match declare_queue(config, channel, queue).await {
        Ok(()) => {}
        // Not an error: dead letters are stored in the spool meanwhile, and events must not wait for them.
        Err(error) if error.is_amqp_error() => {
            let resource = format!("queue {queue}");
            let reason = channel::explain(&error, "read", &resource);
            connected.dead_letter_queue_error = Some(reason);
            // The broker has closed the channel.
            *channel = open_channel(&connected.connection).await?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

async fn declare(config: &Config, channel: &Channel) -> Result<(), BoxError> {
    let exchange = &config.exchange;
    declare_exchange(config, channel)
        .await
        .map_err(|error| channel::explain(&error, "configure", &format!("exchange {exchange}")))?;
    for queue in [&config.queue, &config.dead_letter_queue] {
        // The relay may have no queue of its own.
        if queue.is_empty() {
            continue;
        }
        declare_queue(config, channel, queue)
            .await
            .map_err(|error| channel::explain(&error, "configure", &format!("queue {queue}")))?;
    }
    let queue = &config.queue;
    if !queue.is_empty() {
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        let (queue_name, exchange_name) = (queue.as_amqp(), exchange.as_amqp());
        channel
            .queue_bind(queue_name, exchange_name, "#".into(), options, none)
            .await
            .map_err(|error| {
                let resource = format!("queue {queue}, or read on exchange {exchange}");
                channel::explain(&error, "write", &resource)
            })?;
    }
    Ok(())
}

/// Checks that the exchange and the queue exist: otherwise, events would be dropped or held back one by one.
async fn check(config: &Config, channel: &Channel) -> Result<(), BoxError> {
    let Config {
        exchange, queue, ..
    } = config;
    declare_exchange(config, channel).await.map_err(|error| {
        let advice = "; declare it, or set rabbitmq.exchange or rabbitmq.declare";
        channel::explain(&error, "read", &format!("exchange {exchange}")) + advice
    })?;
    if !queue.is_empty() {
        declare_queue(config, channel, queue)
            .await
            .map_err(|error| {
                let advice =
                    "; declare it, or set rabbitmq.queue to \"\" if only other queues are bound";
                channel::explain(&error, "read", &format!("queue {queue}")) + advice
            })?;
    }
    Ok(())
}

pub(super) async fn declare_exchange(config: &Config, channel: &Channel) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions {
        durable: true,
        passive: !config.declare,
        ..ExchangeDeclareOptions::default()
    };
    let (name, kind) = (config.exchange.as_amqp(), ExchangeKind::Topic);
    channel
        .exchange_declare(name, kind, options, FieldTable::default())
        .await
}

pub(super) async fn declare_queue(
    config: &Config,
    channel: &Channel,
    queue: &ShortName,
) -> lapin::Result<()> {
    let options = QueueDeclareOptions {
        durable: true,
        passive: !config.declare,
        ..QueueDeclareOptions::default()
    };
    // Set no other argument: policies configure the rest, and declaring an existing queue with different arguments is
    // an error.
    let mut arguments = FieldTable::default();
    let queue_type = match config.queue_type {
        QueueType::Quorum => "quorum",
        QueueType::Classic => "classic",
    };
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString(LongString::from(queue_type)),
    );
    let declared = channel.queue_declare(queue.as_amqp(), options, arguments);
    declared.await.map(drop)
}

async fn tls(config: &ClientTls) -> Result<OwnedTLSConfig, BoxError> {
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
    let content = tokio::task::spawn_blocking(move || setting::read_bytes(&owned)).await?;
    content.map_err(|problem| format!("{} {problem}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;

    use tokio::time::Instant;

    use super::*;

    /// The number of this process's threads that run lapin connections.
    fn threads() -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        tasks
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
            .filter(|name| name.trim_end() == "lapin-io-loop")
            .count()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_silent_peer_leaks_no_thread_or_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut accepted = Vec::new();
        for scheme in ["amqp", "amqps"] {
            for _ in 0..3 {
                let uri = format!("{scheme}://guest:guest@127.0.0.1:{port}").parse();
                let limit = Duration::from_millis(300);
                let config = Config::default();
                let opened = open(&config, uri.unwrap(), Attempt::First, limit).await;
                let error = opened.unwrap_err().to_string();
                // Either our timeout or the same timeout on lapin's thread fires first.
                let given_up = error.contains("took longer") || error.contains("could not connect");
                assert!(given_up, "{error}");
                accepted.push(listener.accept().unwrap().0);
            }
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while threads() > 0 {
            assert!(Instant::now() < deadline, "{} threads are left", threads());
            sleep(Duration::from_millis(20)).await;
        }
        for mut socket in accepted {
            socket
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            let mut said = Vec::new();
            socket.read_to_end(&mut said).expect("the socket is closed");
        }
    }
}
