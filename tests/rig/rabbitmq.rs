//! A RabbitMQ node for tests, without plugins, with the user `guest`.

use std::{
    error::Error,
    sync::{
        LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use lapin::{
    Channel, Connection, ConnectionProperties,
    message::Delivery as Raw,
    options::{
        BasicAckOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::time::timeout;

use super::broker::{Broker, DeadLetter, header};
use super::node::{Node, Service, block_on, free_port, poll};
use super::{Recall, Setup};

/// The timeout of an operation on a running node.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long a node may take to answer or to send an expected message.
const ATTEMPT: Duration = Duration::from_secs(3);

/// A queue that sends nothing for this long is empty.
const SILENCE: Duration = Duration::from_millis(500);

/// Starts an election in each quorum queue that has no leader; prints the number of these queues.
///
/// A single node of RabbitMQ 3.10 elects a leader half a second after it accepts connections, and never if a client's
/// command arrives earlier: that command cancels the election's timer (rabbitmq-server issue 10070).
const ELECT: &str = "\
    Leaderless = [Name || Q <- rabbit_amqqueue:list(),
        amqqueue:get_type(Q) =:= rabbit_quorum_queue,
        {Name, _} <- [amqqueue:get_pid(Q)],
        ra_leaderboard:lookup_leader(Name) =:= undefined],
    [ra:trigger_election({Name, node()}) || Name <- Leaderless],
    length(Leaderless).";

/// Syncs the list of quorum queues to disk.
///
/// RabbitMQ does so half a second after a queue was declared. If it is killed before, it starts with an empty queue of
/// that name, and all confirmed messages are lost (seen in 3.10).
const REMEMBER: &str = "[ok = dets:sync(Table) || Table <- dets:all()].";

pub struct RabbitMq {
    node: Node,
    port: u16,
    tls_port: u16,
    was_up: bool,
    frozen: AtomicBool,
}

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
        node.write(
            "ports",
            &format!(
                "ERL_EPMD_PORT={}\nRABBITMQ_DIST_PORT={}\n",
                free_port(),
                free_port()
            ),
        );
        Self {
            node,
            port,
            tls_port,
            was_up: false,
            frozen: AtomicBool::new(false),
        }
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

    /// Runs any other AMQP operations on a separate channel.
    ///
    /// # Panics
    ///
    /// If the node cannot be reached, or `work` takes longer than half a minute.
    pub fn with_channel<T: Send>(&self, work: impl AsyncFnOnce(Channel) -> T + Send) -> T {
        let uri = self.uri();
        block_on(async || {
            let whole = async {
                let connection = connect(&uri).await.expect("a connection");
                let channel = connection.create_channel().await.expect("a channel");
                let result = work(channel).await;
                close(connection).await;
                result
            };
            timeout(TIMEOUT, whole)
                .await
                .expect("an answer of RabbitMQ")
        })
    }

    /// Declares a subscriber's durable queue and binds it to the exchange.
    pub fn bind_queue(&self, exchange: &str, routing_key: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        let queue = format!("rig-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.with_channel(async |channel| {
            let durable = QueueDeclareOptions {
                durable: true,
                ..QueueDeclareOptions::default()
            };
            let name = ShortString::from(queue.as_str());
            channel
                .queue_declare(name.clone(), durable, FieldTable::default())
                .await
                .expect("a queue");
            let (options, none) = (QueueBindOptions::default(), FieldTable::default());
            let bound = channel
                .queue_bind(name, exchange.into(), routing_key.into(), options, none)
                .await;
            bound.expect("a binding");
        });
        queue
    }

    /// The port that the node listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Consumes all current messages of a queue, in order; none if it does not exist.
    pub fn drain(&self, queue: &str) -> Vec<Delivery> {
        let uri = self.uri();
        let mut deliveries = Vec::new();
        let taken = block_on(async || take(&uri, queue, 0, &mut deliveries).await);
        if let Err(error) = taken {
            eprintln!("{queue} could not be read to its end: {error}");
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
        let mut trouble = None;
        let enough = poll(timeout, || {
            // The queue or the node may not exist yet.
            let taken =
                block_on(async || take(&uri, queue, expected_at_least, &mut deliveries).await);
            trouble = taken.err().map(|error| error.to_string());
            deliveries.len() >= expected_at_least
        });
        assert!(
            enough,
            "{queue} gave {} messages of {expected_at_least} in {timeout:?} ({trouble:?}): {deliveries:#?}",
            deliveries.len(),
        );
        deliveries
    }
}

impl Broker for RabbitMq {
    fn start_with_limit(bytes: u32) -> Self {
        Self::start_with(&[&format!("max_message_size = {bytes}")])
    }

    fn sink(&self) -> &'static str {
        "rabbitmq"
    }

    fn is_idempotent(&self) -> bool {
        false
    }

    fn settings(&self, setup: Setup, name: &str) -> Setup {
        setup
            .set("RECALL_RABBITMQ__URI", &self.uri())
            .set("RECALL_RABBITMQ__EXCHANGE", name)
            .set("RECALL_RABBITMQ__QUEUE", name)
            .set(
                "RECALL_RABBITMQ__DEAD_LETTER_QUEUE",
                &format!("{name}.dead"),
            )
    }

    /// The user may do everything except publish to the default exchange.
    fn settings_without_dead_letters(
        &self,
        setup: Setup,
        name: &str,
    ) -> (Setup, &'static str, &'static str) {
        self.ctl(&["add_user", "limited", "limited"]);
        // For permissions the default exchange is named amq.default.
        let ours = format!("^{name}.*$");
        self.ctl(&["set_permissions", "limited", &ours, &ours, &ours]);
        let uri = format!("amqp://limited:limited@127.0.0.1:{}", self.port);
        let setup = self.settings(setup, name).set("RECALL_RABBITMQ__URI", &uri);
        (setup, "dead_letter_queue", "ACCESS_REFUSED")
    }

    fn stop(&mut self) {
        self.node.stop();
        *self.frozen.get_mut() = false;
    }

    /// Has the node sync its list of quorum queues first, unless it is frozen.
    fn kill(&mut self) {
        if self.node.runs() && !*self.frozen.get_mut() {
            self.ctl(&["eval", REMEMBER]);
        }
        self.node.kill();
        *self.frozen.get_mut() = false;
    }

    fn freeze(&self) {
        self.node.freeze();
        self.frozen.store(true, Ordering::Relaxed);
    }

    fn thaw(&self) {
        self.node.thaw();
        self.frozen.store(false, Ordering::Relaxed);
    }

    /// Also waits until its queues have leaders.
    fn resume(&mut self) {
        let uri = self.uri();
        self.node.launch(|| {
            block_on(async || {
                let connection = timeout(Duration::from_secs(5), connect(&uri)).await;
                if let Ok(Ok(connection)) = connection {
                    close(connection).await;
                    true
                } else {
                    false
                }
            })
        });
        if self.was_up {
            let elected = poll(TIMEOUT, || self.ctl(&["eval", ELECT]) == "0");
            assert!(elected, "quorum queues stay without a leader");
        }
        self.was_up = true;
    }

    fn delete(&self, name: &str) {
        self.with_channel(async |channel| {
            let deleted = channel.queue_delete(name.into(), QueueDeleteOptions::default());
            deleted.await.expect("a deleted queue");
        });
    }

    fn recalls(&self, name: &str, at_least: usize) -> Vec<Recall> {
        let deliveries = self.read(name, at_least, super::TIMEOUT);
        let recalls = deliveries.iter().map(|delivery| Recall::of(&delivery.body));
        recalls.collect()
    }

    fn dead_letters(&self, name: &str, at_least: usize) -> Vec<DeadLetter> {
        let deliveries = self.read(&format!("{name}.dead"), at_least, super::TIMEOUT);
        let dead_letter = |delivery: &Delivery| DeadLetter {
            kind: delivery.kind.clone(),
            reason: delivery.header("recall_reason").map(str::to_owned),
        };
        deliveries.iter().map(dead_letter).collect()
    }
}

/// Consumes the queue's current messages. No timeout interrupts an acknowledgement, which a quorum queue needs after
/// 2000 messages.
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

async fn connect(uri: &str) -> lapin::Result<Connection> {
    Connection::connect(uri, ConnectionProperties::default()).await
}

/// Closes a connection without waiting long: a node under memory alarm does not answer.
async fn close(connection: Connection) {
    let _ = timeout(Duration::from_secs(2), connection.close(200, "".into())).await;
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
