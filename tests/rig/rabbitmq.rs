//! A RabbitMQ node for tests, or a cluster of three, without plugins, with the user `guest`.

mod broker;
mod cluster;
mod reading;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::time::timeout;

pub use self::reading::Delivery;
use super::broker::Broker as _;
use super::node::{Node, Service, block_on, free_port};

/// The timeout of an operation on a running node.
const TIMEOUT: Duration = Duration::from_secs(30);

pub struct RabbitMq {
    node: Node,
    port: u16,
    tls_port: u16,
    was_up: bool,
    frozen: AtomicBool,
    /// The other nodes of its cluster.
    others: Vec<Self>,
}

impl RabbitMq {
    /// One node for all tests of a file, used by one test at a time, because some tests restart it.
    pub fn shared() -> MutexGuard<'static, Self> {
        static RABBITMQ: LazyLock<Mutex<RabbitMq>> =
            LazyLock::new(|| Mutex::new(RabbitMq::start()));
        RABBITMQ.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A running node.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A running node with these additional lines in `rabbitmq.conf`.
    ///
    /// With lines `ssl_options.… = …` (PEM files in a temporary folder of the test) it also listens for TLS.
    pub fn start_with(lines: &[&str]) -> Self {
        let mut rabbitmq = Self::new_stopped_with(lines);
        rabbitmq.resume();
        rabbitmq
    }

    /// A node that has its port but is not started yet: [`RabbitMq::resume`] starts it.
    pub fn new_stopped() -> Self {
        Self::new_stopped_with(&[])
    }

    fn new_stopped_with(lines: &[&str]) -> Self {
        let node = Node::new(Service::RabbitMq);
        let (port, tls_port) = (free_port(), free_port());
        let tcp = format!("listeners.tcp.default = 127.0.0.1:{port}");
        let tls = format!("listeners.ssl.default = 127.0.0.1:{tls_port}");
        let mut conf = vec![tcp.as_str()];
        if lines.iter().any(|line| line.starts_with("ssl_options.")) {
            conf.push(&tls);
        }
        conf.extend(lines);
        node.write("rabbitmq.conf", &(conf.join("\n") + "\n"));
        let rabbitmq = Self {
            node,
            port,
            tls_port,
            was_up: false,
            frozen: AtomicBool::new(false),
            others: Vec::new(),
        };
        rabbitmq.write_ports("rabbit@localhost", free_port());
        rabbitmq
    }

    fn write_ports(&self, name: &str, epmd_port: u16) {
        let port = free_port();
        let lines = [
            format!("RABBITMQ_NODENAME={name}\n"),
            format!("ERL_EPMD_PORT={epmd_port}\n"),
            format!("RABBITMQ_DIST_PORT={port}\n"),
        ];
        self.node.write("ports", &lines.concat());
    }

    pub fn uri(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    /// Uses a host name, because certificates need one; see [`RabbitMq::start_with`].
    pub fn tls_uri(&self) -> String {
        format!("amqps://guest:guest@localhost:{}", self.tls_port)
    }

    /// Runs `rabbitmqctl` on this node, which takes about a second; returns its output.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.node
            .run_script("rabbitmq/node", &[&["ctl"], arguments].concat())
    }

    /// Runs AMQP operations on a connection and a channel of their own.
    ///
    /// # Panics
    ///
    /// If the node cannot be reached, or `work` takes longer than half a minute.
    pub fn with_channel<T: Send>(&self, work: impl AsyncFnOnce(Channel) -> T + Send) -> T {
        let uri = self.uri();
        block_on(async || {
            let whole = async {
                let connection = connect(&uri).await.expect("cannot connect");
                let channel = connection.create_channel().await.expect("no channel");
                let result = work(channel).await;
                close(connection).await;
                result
            };
            timeout(TIMEOUT, whole)
                .await
                .expect("timed out waiting for RabbitMQ")
        })
    }

    /// Declares a subscriber's durable queue and binds it to the exchange.
    pub fn bind_queue(&self, exchange: &str, routing_key: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        let queue = format!("rig-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.declare_and_bind(&queue, exchange, routing_key);
        queue
    }

    /// Declares a durable queue of this name, and binds it to everything of the exchange.
    pub fn declare_queue(&self, exchange: &str, queue: &str) -> String {
        self.declare_and_bind(queue, exchange, "#");
        queue.to_owned()
    }

    /// Declares a durable topic exchange.
    pub fn declare_exchange(&self, name: &str) {
        self.with_channel(async |channel| {
            let durable = ExchangeDeclareOptions {
                durable: true,
                ..ExchangeDeclareOptions::default()
            };
            let (kind, none) = (ExchangeKind::Topic, FieldTable::default());
            let declared = channel.exchange_declare(name.into(), kind, durable, none);
            declared.await.expect("cannot declare the exchange");
        });
    }

    fn declare_and_bind(&self, queue: &str, exchange: &str, routing_key: &str) {
        self.with_channel(async |channel| {
            let durable = QueueDeclareOptions {
                durable: true,
                ..QueueDeclareOptions::default()
            };
            let name = ShortString::from(queue);
            channel
                .queue_declare(name.clone(), durable, FieldTable::default())
                .await
                .expect("cannot declare the queue");
            let (options, none) = (QueueBindOptions::default(), FieldTable::default());
            let bound = channel
                .queue_bind(name, exchange.into(), routing_key.into(), options, none)
                .await;
            bound.expect("cannot bind the queue");
        });
    }

    /// The port that the node listens on.
    pub fn port(&self) -> u16 {
        self.port
    }
}

async fn connect(uri: &str) -> lapin::Result<Connection> {
    Connection::connect(uri, ConnectionProperties::default()).await
}

/// Closes a connection without waiting long: a node under memory alarm does not answer.
async fn close(connection: Connection) {
    let _ = timeout(Duration::from_secs(2), connection.close(200, "".into())).await;
}
