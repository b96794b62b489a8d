//! A Kafka broker for tests: one node, both broker and controller, that creates no topic automatically.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    net::TcpStream,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    message::{BorrowedMessage, Headers},
};

use super::broker::{Broker, DeadLetter, header};
pub use super::kafka_wire::{Operation, Resource};
use super::node::{Node, Service, block_on, free_port, poll};
use super::{Recall, Setup, kafka_wire};

/// The user of [`Kafka::sasl_servers`], for PLAIN and for SCRAM-SHA-256.
pub const USER: &str = "relay";
pub const PASSWORD: &str = "relay-secret";

/// With these properties, rights can be denied; anonymous clients may do everything.
pub const AUTHORIZER: [(&str, &str); 3] = [
    STRICT[0],
    STRICT[1],
    ("allow.everyone.if.no.acl.found", "true"),
];

/// With these properties, [`USER`] has only the rights that it was given; anonymous clients may do everything.
pub const STRICT: [(&str, &str); 2] = [
    (
        "authorizer.class.name",
        "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    ),
    ("super.users", "User:ANONYMOUS"),
];

const NODE_ID: i32 = 1;

/// The isolation level of a subscriber.
const COMMITTED: &str = "read_committed";

/// The timeout of administrative requests.
const TIMEOUT: Duration = Duration::from_secs(30);

pub struct Kafka {
    node: Node,
    port: u16,
    sasl_port: u16,
    tls_port: u16,
    proxied: Proxied,
}

/// A listener that clients reach only through a proxy.
#[derive(Clone, Copy)]
pub struct Proxied {
    /// The port that the broker listens on.
    pub listens: u16,
    /// The port that it advertises to clients.
    pub advertised: u16,
}

/// An event as a subscriber receives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<String>,
    pub headers: Vec<(String, String)>,
    pub payload: Vec<u8>,
}

impl Kafka {
    /// One broker for all tests of a file, used by one test at a time, because some tests restart it. It has an
    /// [`AUTHORIZER`].
    pub fn shared() -> MutexGuard<'static, Self> {
        static KAFKA: LazyLock<Mutex<Kafka>> =
            LazyLock::new(|| Mutex::new(Kafka::start_with(&AUTHORIZER)));
        KAFKA.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A running broker.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A running broker with these lines of `server.properties`, which are added to ours or replace them.
    ///
    /// With properties `listener.name.tls.ssl.…` (PEM inline: `ssl.keystore.type=PEM`,
    /// `ssl.keystore.certificate.chain`, `ssl.keystore.key` in PKCS #8) it also listens for TLS.
    pub fn start_with(properties: &[(&str, &str)]) -> Self {
        let mut kafka = Self::new_stopped_with(properties);
        kafka.resume();
        kafka
    }

    /// A broker that has its ports but is not started yet: [`Kafka::resume`] starts it.
    pub fn new_stopped() -> Self {
        Self::new_stopped_with(&[])
    }

    fn new_stopped_with(properties: &[(&str, &str)]) -> Self {
        let kafka = Self {
            node: Node::new(Service::Kafka),
            port: free_port(),
            sasl_port: free_port(),
            tls_port: free_port(),
            proxied: Proxied {
                listens: free_port(),
                advertised: free_port(),
            },
        };
        kafka
            .node
            .write("server.properties", &kafka.server_properties(properties));
        kafka.node.write(
            "scram",
            &format!("SCRAM-SHA-256=[name={USER},password={PASSWORD}]"),
        );
        kafka
    }

    pub fn bootstrap_servers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The listener for [`USER`]: `security.protocol=SASL_PLAINTEXT`.
    pub fn sasl_servers(&self) -> String {
        format!("127.0.0.1:{}", self.sasl_port)
    }

    /// The settings of a relay that connects as [`USER`].
    pub fn as_user(&self, setup: Setup) -> Setup {
        let setup = setup.set("RECALL_KAFKA__BOOTSTRAP_SERVERS", &self.sasl_servers());
        [
            ("SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
            ("SASL_MECHANISM", "PLAIN"),
            ("SASL_USERNAME", USER),
            ("SASL_PASSWORD", PASSWORD),
        ]
        .into_iter()
        .fold(setup, |setup, (name, value)| {
            setup.set(&format!("RECALL_KAFKA__PROPERTIES__{name}"), value)
        })
    }

    /// The listener for `security.protocol=SSL`; see [`Kafka::start_with`].
    pub fn tls_servers(&self) -> String {
        format!("127.0.0.1:{}", self.tls_port)
    }

    /// The listener that advertises another port, which a test's proxy listens on.
    pub fn proxied(&self) -> Proxied {
        self.proxied
    }

    /// Allows or denies [`USER`] to write to a topic; other users always may. Has an effect only if the properties
    /// include [`AUTHORIZER`].
    pub fn allow_writing(&self, topic: &str, allowed: bool) {
        kafka_wire::allow_writing(self.port, topic, allowed);
    }

    /// Gives [`USER`] a right. Has an effect only if the properties include [`STRICT`].
    pub fn permit(&self, resource: Resource<'_>, operation: Operation) {
        kafka_wire::permit(self.port, resource, operation);
    }

    /// Removes the last batch of a partition and its producer state, as a power cut does, because Kafka confirms
    /// records that it has not synced. The broker must have been killed.
    pub fn lose_last_batch(&self, topic: &str, partition: i32) {
        let folder = self.node.path(&format!("data/{topic}-{partition}"));
        for entry in fs::read_dir(&folder).expect("the partition's folder") {
            let path = entry.expect("its files").path();
            if path.extension().is_some_and(|ending| ending == "snapshot") {
                fs::remove_file(path).expect("a snapshot that can be removed");
            }
        }
        let log = folder.join("00000000000000000000.log");
        let bytes = fs::read(&log).expect("the partition's log");
        let (mut at, mut last) = (0, 0);
        // A batch begins with its first offset (8 bytes), followed by its length (4 bytes).
        while let Some(length) = bytes.get(at + 8..at + 12) {
            let length = u32::from_be_bytes(length.try_into().expect("4 bytes"));
            last = at;
            at += 12 + length as usize;
            if length == 0 {
                break;
            }
        }
        let file = OpenOptions::new().write(true).open(&log);
        file.and_then(|file| file.set_len(last as u64))
            .expect("a log that can be cut off");
    }

    /// Unregisters the broker from the cluster: until it is restarted, metadata lists no broker and no leader.
    pub fn unregister(&self) {
        kafka_wire::unregister(self.port, NODE_ID);
    }

    /// Creates a topic, and waits until producers can find it.
    pub fn create_topic(&self, topic: &str, partitions: u32, configs: &[(&str, &str)]) {
        let count = i32::try_from(partitions).expect("a number of partitions");
        let new = NewTopic::new(topic, count, TopicReplication::Fixed(1));
        let new = configs
            .iter()
            .fold(new, |new, (name, value)| new.set(name, value));
        let client = self.client();
        let results = block_on(async || client.create_topics([&new], &admin_options()).await);
        results.expect("an answer to CreateTopics")[0]
            .as_ref()
            .expect("a new topic");
        let found = poll(TIMEOUT, || {
            let metadata = client
                .inner()
                .fetch_metadata(Some(topic), Duration::from_secs(2));
            metadata.is_ok_and(|metadata| {
                let found = metadata.topics()[0].partitions();
                found.len() == partitions as usize
                    && found.iter().all(|partition| partition.leader() >= 0)
            })
        });
        assert!(found, "topic {topic} is created and does not appear");
    }

    /// Gives a topic these configs, and resets its other configs to their defaults.
    pub fn alter_topic(&self, topic: &str, configs: &[(&str, &str)]) {
        let alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
        let alter = configs
            .iter()
            .fold(alter, |alter, (name, value)| alter.set(name, value));
        let client = self.client();
        let results = block_on(async || client.alter_configs([&alter], &admin_options()).await);
        results.expect("an answer to AlterConfigs")[0]
            .as_ref()
            .expect("altered configs");
    }

    /// Deletes a topic, and waits until it is gone.
    pub fn delete_topic(&self, topic: &str) {
        let client = self.client();
        let results = block_on(async || client.delete_topics(&[topic], &admin_options()).await);
        results.expect("an answer to DeleteTopics")[0]
            .as_ref()
            .expect("a deleted topic");
        let gone = poll(TIMEOUT, || {
            let metadata = client
                .inner()
                .fetch_metadata(Some(topic), Duration::from_secs(2));
            metadata.is_ok_and(|metadata| metadata.topics()[0].error().is_some())
        });
        assert!(gone, "topic {topic} is deleted and does not go");
    }

    /// Deletes the offsets of a group, as the broker itself does after `offsets.retention.minutes`.
    pub fn delete_group(&self, group: &str) {
        let client = self.client();
        let results = block_on(async || client.delete_groups(&[group], &admin_options()).await);
        results.expect("an answer to DeleteGroups")[0]
            .as_ref()
            .expect("a deleted group");
    }

    /// Waits until a topic has `expected_at_least` records, then reads all of it as a subscriber does (committed
    /// records only), by partition and offset.
    ///
    /// # Panics
    ///
    /// If it has fewer when `timeout` ends.
    pub fn read(&self, topic: &str, expected_at_least: usize, timeout: Duration) -> Vec<Record> {
        let deadline = Instant::now() + timeout;
        let mut records = Vec::new();
        let enough = poll(timeout, || {
            if let Some(whole) = self.read_to_end(topic, COMMITTED, &BTreeMap::new(), deadline) {
                records = whole;
            }
            records.len() >= expected_at_least
        });
        assert!(
            enough,
            "{topic} has {} records of {expected_at_least} after {timeout:?}: {records:#?}",
            records.len(),
        );
        records
    }

    /// All current records of a topic; empty if it does not exist.
    pub fn read_all(&self, topic: &str) -> Vec<Record> {
        self.read_from(topic, &BTreeMap::new())
    }

    /// All current records of a topic, in each partition from the given offset.
    pub fn read_from(&self, topic: &str, from: &BTreeMap<i32, i64>) -> Vec<Record> {
        let deadline = Instant::now() + 2 * TIMEOUT;
        let records = self.read_to_end(topic, COMMITTED, from, deadline);
        records.unwrap_or_default()
    }

    /// Like [`Kafka::read_from`], including records that are not committed or were aborted.
    pub fn read_uncommitted_from(&self, topic: &str, from: &BTreeMap<i32, i64>) -> Vec<Record> {
        let deadline = Instant::now() + 2 * TIMEOUT;
        let records = self.read_to_end(topic, "read_uncommitted", from, deadline);
        records.unwrap_or_default()
    }

    /// Deletes all records of a topic; the topic stays, and its offsets continue.
    pub fn delete_records(&self, topic: &str) {
        let client = self.client();
        let metadata = client
            .inner()
            .fetch_metadata(Some(topic), TIMEOUT)
            .expect("metadata");
        let mut all = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            all.add_partition_offset(topic, partition.id(), Offset::End)
                .expect("an offset");
        }
        let deleted = block_on(async || client.delete_records(&all, &admin_options()).await);
        deleted.expect("an answer to DeleteRecords");
    }

    /// All records from each partition's offset, or its beginning, to its end; `None` if the topic does not exist or
    /// the broker does not answer.
    fn read_to_end(
        &self,
        topic: &str,
        isolation: &str,
        from: &BTreeMap<i32, i64>,
        deadline: Instant,
    ) -> Option<Vec<Record>> {
        let consumer: BaseConsumer = client_config(&self.bootstrap_servers())
            .set("group.id", "rig")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "10")
            .set("isolation.level", isolation)
            // Uncommitted records have offsets, too, so the offset to read from may be before the beginning.
            .set("auto.offset.reset", "earliest")
            .create()
            .expect("a consumer");
        let metadata = consumer
            .fetch_metadata(Some(topic), Duration::from_secs(2))
            .ok()?;
        let mut unread: BTreeSet<i32> = metadata.topics()[0]
            .partitions()
            .iter()
            .map(rdkafka::metadata::MetadataPartition::id)
            .collect();
        if unread.is_empty() {
            return None;
        }
        let mut assignment = TopicPartitionList::new();
        for partition in &unread {
            let from = from
                .get(partition)
                .map_or(Offset::Beginning, |at| Offset::Offset(*at));
            assignment
                .add_partition_offset(topic, *partition, from)
                .expect("an offset");
        }
        consumer.assign(&assignment).expect("an assignment");

        let mut records = Vec::new();
        while !unread.is_empty() && Instant::now() < deadline {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => records.push(Record::new(&message)),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    unread.remove(&partition);
                }
                // The consumer retries by itself.
                Some(Err(_)) | None => {}
            }
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        unread.is_empty().then_some(records)
    }

    fn client(&self) -> AdminClient<DefaultClientContext> {
        client_config(&self.bootstrap_servers())
            .create()
            .expect("an admin client")
    }

    fn server_properties(&self, added: &[(&str, &str)]) -> String {
        let (port, sasl, tls, controller) = (self.port, self.sasl_port, self.tls_port, free_port());
        let secure = added
            .iter()
            .any(|(name, _)| name.starts_with("listener.name.tls."));
        let tls = if secure {
            format!(",TLS://127.0.0.1:{tls}")
        } else {
            String::new()
        };
        let Proxied {
            listens,
            advertised,
        } = self.proxied;
        let clients = format!(
            "PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{sasl}{tls},PROXIED://127.0.0.1:"
        );
        let listeners = format!("{clients}{listens},CONTROLLER://127.0.0.1:{controller}");
        let advertised = format!("{clients}{advertised}");
        let node_id = NODE_ID.to_string();
        let voters = format!("{node_id}@127.0.0.1:{controller}");
        let ours = [
            ("node.id", node_id.as_str()),
            ("process.roles", "broker,controller"),
            ("controller.quorum.voters", &voters),
            ("controller.listener.names", "CONTROLLER"),
            ("inter.broker.listener.name", "PLAINTEXT"),
            ("listeners", &listeners),
            ("advertised.listeners", &advertised),
            (
                "listener.security.protocol.map",
                "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,\
                 PROXIED:PLAINTEXT",
            ),
            ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256"),
            (
                "listener.name.sasl.plain.sasl.jaas.config",
                &format!(
                    "org.apache.kafka.common.security.plain.PlainLoginModule required \
                     user_{USER}=\"{PASSWORD}\";"
                ),
            ),
            (
                "listener.name.sasl.scram-sha-256.sasl.jaas.config",
                "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            ),
            ("log.dirs", "data"),
            // Delete the segments of a deleted topic soon: a minute of load is many gigabytes.
            ("log.segment.delete.delay.ms", "1000"),
            ("auto.create.topics.enable", "false"),
            // A killed broker cannot register again until its old session has ended.
            ("broker.session.timeout.ms", "4000"),
            ("broker.heartbeat.interval.ms", "500"),
            // One node: no replicas, no rebalance delay.
            ("offsets.topic.replication.factor", "1"),
            ("offsets.topic.num.partitions", "1"),
            ("transaction.state.log.replication.factor", "1"),
            ("transaction.state.log.min.isr", "1"),
            ("transaction.state.log.num.partitions", "1"),
            ("share.coordinator.state.topic.replication.factor", "1"),
            ("share.coordinator.state.topic.min.isr", "1"),
            ("group.initial.rebalance.delay.ms", "0"),
        ];
        let all: BTreeMap<_, _> = ours.iter().chain(added).copied().collect();
        let line = |(name, value): (&str, &str)| {
            format!(
                "{name}={}\n",
                value.replace('\\', "\\\\").replace('\n', "\\n")
            )
        };
        all.into_iter().map(line).collect()
    }
}

impl Broker for Kafka {
    fn start_with_limit(bytes: u32) -> Self {
        Self::start_with(&[("message.max.bytes", &bytes.to_string())])
    }

    fn sink(&self) -> &'static str {
        "kafka"
    }

    fn is_idempotent(&self) -> bool {
        true
    }

    fn settings(&self, setup: Setup, name: &str) -> Setup {
        setup
            .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", &self.bootstrap_servers())
            .set("RECALL_KAFKA__TOPIC", name)
            .set("RECALL_KAFKA__DEAD_LETTER_TOPIC", &format!("{name}.dead"))
    }

    /// Has an effect only if the properties include [`AUTHORIZER`].
    fn settings_without_dead_letters(
        &self,
        setup: Setup,
        name: &str,
    ) -> (Setup, &'static str, &'static str) {
        let dead = format!("{name}.dead");
        self.create_topic(&dead, 2, &[]);
        self.permit(Resource::Topic(&dead), Operation::Describe);
        let setup = self.settings(setup, name);
        (
            self.as_user(setup),
            "dead_letter_topic",
            "TopicAuthorizationFailed",
        )
    }

    fn stop(&mut self) {
        self.node.stop();
    }

    fn kill(&mut self) {
        self.node.kill();
    }

    fn resume(&mut self) {
        let port = self.port;
        let client = self.client();
        self.node.launch(|| {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
                && client
                    .inner()
                    .fetch_metadata(None, Duration::from_secs(2))
                    .is_ok_and(|seen| {
                        let led = |topic: &rdkafka::metadata::MetadataTopic| {
                            topic
                                .partitions()
                                .iter()
                                .all(|partition| partition.leader() >= 0)
                        };
                        !seen.brokers().is_empty() && seen.topics().iter().all(led)
                    })
        });
    }

    /// If this lasts longer than `broker.session.timeout.ms` (see `server_properties`), the broker is fenced for a
    /// moment afterwards.
    fn freeze(&self) {
        self.node.freeze();
    }

    fn thaw(&self) {
        self.node.thaw();
    }

    fn delete(&self, name: &str) {
        self.delete_topic(name);
    }

    fn recalls(&self, name: &str, at_least: usize) -> Vec<Recall> {
        let records = self.read(name, at_least, super::TIMEOUT);
        let recalls = records.iter().map(|record| Recall::of(&record.payload));
        recalls.collect()
    }

    fn dead_letters(&self, name: &str, at_least: usize) -> Vec<DeadLetter> {
        let records = self.read(&format!("{name}.dead"), at_least, super::TIMEOUT);
        let dead_letter = |record: &Record| DeadLetter {
            kind: record.header("ce_type").map(str::to_owned),
            reason: record.header("recall_reason").map(str::to_owned),
        };
        records.iter().map(dead_letter).collect()
    }
}

impl Record {
    fn new(message: &BorrowedMessage<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        Self {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(text),
            headers: headers
                .map(|h| (h.key.to_owned(), h.value.map(text).unwrap_or_default()))
                .collect(),
            payload: message.payload().unwrap_or_default().to_vec(),
        }
    }

    /// The value of a header, if exactly one has that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

fn client_config(servers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", servers)
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "200");
    config
}

fn admin_options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(TIMEOUT))
        .operation_timeout(Some(TIMEOUT))
}
