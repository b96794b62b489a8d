//! A Kafka broker for tests: one node or three, each both broker and controller, that creates no topic automatically.

mod broker;
mod cluster;
mod properties;
mod reading;
mod scram;
mod topics;
mod wire;

use std::fs;
use std::io::{self, Write as _};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, Producer as _};

pub use self::reading::Record;
pub use self::wire::{Operation, Resource};
use super::Setup;
use super::broker::Broker as _;
use super::node::{Node, Service, free_port, setting};

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

/// The first version that has SCRAM without `ZooKeeper` (KIP-900).
const SCRAM_SINCE: (u32, u32) = (3, 5);

const NODE_ID: i32 = 1;

/// The timeout of administrative requests.
const TIMEOUT: Duration = Duration::from_secs(30);

pub struct Kafka {
    node: Node,
    port: u16,
    sasl_port: u16,
    tls_port: u16,
    controller_port: u16,
    proxied: Proxied,
    /// The other nodes of its cluster.
    others: Vec<Self>,
}

/// A listener that clients reach only through a proxy.
#[derive(Clone, Copy)]
pub struct Proxied {
    /// The port that the broker listens on.
    pub listens: u16,
    /// The port that it advertises to clients.
    pub advertised: u16,
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

    /// A running broker with these lines in `server.properties`, which replace the default ones or are added to them.
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
            controller_port: free_port(),
            proxied: Proxied {
                listens: free_port(),
                advertised: free_port(),
            },
            others: Vec::new(),
        };
        kafka.node.write(
            "server.properties",
            &properties::server_properties(&kafka, properties),
        );
        if version() >= SCRAM_SINCE {
            kafka.node.write(
                "scram",
                &format!("SCRAM-SHA-256=[name={USER},password={PASSWORD}]"),
            );
        }
        kafka
    }

    pub fn bootstrap_servers(&self) -> String {
        let nodes = [self].into_iter().chain(&self.others);
        let servers = nodes.map(|node| format!("127.0.0.1:{}", node.port));
        servers.collect::<Vec<_>>().join(",")
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

    /// Allows or forbids [`USER`] to write to a topic; other users always may. Has an effect only if the properties
    /// include [`AUTHORIZER`].
    pub fn allow_writing(&self, topic: &str, allowed: bool) {
        wire::allow_writing(self.port, topic, allowed);
    }

    /// Adds an ACL that allows [`USER`] an operation. With [`AUTHORIZER`], the first ACL of a resource also takes all
    /// other rights on it away. Without properties that name an authorizer, it has no effect.
    pub fn permit(&self, resource: Resource<'_>, operation: Operation) {
        wire::permit(self.port, resource, operation, true);
    }

    /// Removes an ACL that [`Kafka::permit`] has added.
    pub fn revoke(&self, resource: Resource<'_>, operation: Operation) {
        wire::permit(self.port, resource, operation, false);
    }

    /// Changes the password of [`USER`] for PLAIN, from its next start on.
    pub fn change_password(&self, from: &str, to: &str) {
        let user = |password| format!("user_{USER}=\"{password}\"");
        self.edit_properties(&user(from), &user(to));
    }

    /// Has the listener of [`Kafka::proxied`] advertise this host, from its next start on.
    pub fn advertise_host(&self, host: &str) {
        let Proxied { advertised, .. } = self.proxied;
        let address = |host| format!("PROXIED://{host}:{advertised}");
        self.edit_properties(&address("127.0.0.1"), &address(host));
    }

    fn edit_properties(&self, from: &str, to: &str) {
        let file = "server.properties";
        let before = fs::read_to_string(self.node.path(file)).expect("cannot read the properties");
        assert!(before.contains(from), "{from} is not in {before}");
        self.node.write(file, &before.replace(from, to));
    }

    /// Whether this version of Kafka has SCRAM. If not, says on stderr that the test leaves it out.
    pub fn has_scram(test: &str) -> bool {
        let version = version();
        let has_scram = version >= SCRAM_SINCE;
        if !has_scram {
            let (major, minor) = version;
            // Not by a macro: the harness shows what those print only if a test fails.
            writeln!(
                io::stderr(),
                "{test}: not tested with SCRAM, which Kafka {major}.{minor} has only with ZooKeeper"
            )
            .expect("cannot write to stderr");
        }
        has_scram
    }

    /// Changes the password of [`USER`] for SCRAM-SHA-256. Connections that are open stay so.
    pub fn set_password(&self, password: &str) {
        scram::set_password(self.port, USER, password);
    }

    /// Unregisters the broker from the cluster: until it is restarted, metadata lists no broker and no leader.
    pub fn unregister(&self) {
        wire::unregister(self.controller_port, NODE_ID);
    }

    /// Ends the transaction that a producer has left open, as the next producer with its id does.
    pub fn end_transaction(&self, transactional_id: &str) {
        let mut config = client_config(&self.bootstrap_servers());
        let next: BaseProducer = config
            .set("transactional.id", transactional_id)
            .create()
            .expect("cannot create a producer");
        next.init_transactions(TIMEOUT)
            .expect("cannot end the transaction");
    }

    fn client(&self) -> AdminClient<DefaultClientContext> {
        client_config(&self.bootstrap_servers())
            .create()
            .expect("cannot create an admin client")
    }
}

/// Major and minor version of the broker.
fn version() -> (u32, u32) {
    let version = setting("RECALL_TEST_KAFKA_VERSION");
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor),
        _ => panic!("RECALL_TEST_KAFKA_VERSION is {version:?}, not like 4.1.1"),
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
