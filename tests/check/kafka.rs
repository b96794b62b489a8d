//! Kafka.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rcgen::ExtendedKeyUsagePurpose::ClientAuth;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, Producer as _};

use super::rig::kafka::{Operation, Resource, STRICT};
use super::rig::{Authority, Broker as _, Kafka, Setup, free_port};
use super::{Checked, check, check_all, text};

/// All topics, also those of the cluster itself, with the number of their partitions.
fn topics(kafka: &Kafka) -> BTreeMap<String, usize> {
    let servers = kafka.bootstrap_servers();
    let client: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .create()
        .unwrap();
    let metadata = client
        .client()
        .fetch_metadata(None, Duration::from_secs(30))
        .unwrap();
    let topics = metadata.topics().iter();
    topics
        .map(|topic| (topic.name().to_owned(), topic.partitions().len()))
        .collect()
}

/// One broker for all: it takes several seconds to start. It has TLS, USER has only the rights that it is given, and it
/// creates topics for clients that allow that.
#[test]
fn what_is_wrong_with_kafka_is_reported_and_nothing_is_changed() {
    let authority = Authority::new();
    let creating = ("auto.create.topics.enable", "true");
    let kafka = authority.kafka_with(&[STRICT[0], STRICT[1], creating]);
    kafka.create_topic("there", 3, &[]);
    kafka.create_topic("small", 1, &[("max.message.bytes", "20000")]);
    kafka.create_topic("hidden", 1, &[]);
    let before = topics(&kafka);
    connections(&kafka, &authority);
    topics_and_limits(&kafka);
    rights(&kafka);
    assert_eq!(topics(&kafka), before);
    frozen(&kafka);
}

fn of(kafka: &Kafka, topic: &str) -> Setup {
    kafka.settings(Setup::new(), topic)
}

fn assert_cluster_failed(checked: &Checked, text: &str) {
    checked.assert_only_failed("kafka", "cluster", text);
}

fn connections(kafka: &Kafka, authority: &Authority) {
    let at = |servers: &str| of(kafka, "there").set("RECALL_KAFKA__BOOTSTRAP_SERVERS", servers);
    let property = |name: &str| format!("RECALL_KAFKA__PROPERTIES__{name}");
    let nobody = format!("127.0.0.1:{}", free_port());
    let unknown = "no-such-host.invalid:9092";
    let tls = at(&kafka.tls_servers()).set(&property("SECURITY_PROTOCOL"), "SSL");
    let (cert, key) = authority.sign("client", ClientAuth);
    let proxied = kafka.proxied();
    let [
        refused,
        unresolved,
        one_refused,
        no_tls,
        foreign,
        trusted,
        wrong_password,
        misadvertised,
    ] = check_all([
        at(&nobody),
        at(unknown),
        at(&format!("{nobody},{}", kafka.bootstrap_servers())),
        at(&kafka.bootstrap_servers()).set(&property("SECURITY_PROTOCOL"), "SSL"),
        tls.clone(),
        tls.set(&property("SSL_CA_LOCATION"), text(&authority.ca()))
            .set(&property("SSL_CERTIFICATE_LOCATION"), text(&cert))
            .set(&property("SSL_KEY_LOCATION"), text(&key)),
        kafka
            .as_user(of(kafka, "there"))
            .set(&property("SASL_PASSWORD"), "hunter2"),
        at(&format!("127.0.0.1:{}", proxied.listens)),
    ]);
    refused.assert_only_failed("kafka", &nobody, "Connection refused");
    refused.assert(
        "kafka",
        "cluster",
        "untried",
        "no bootstrap server was reached",
    );
    unresolved.assert_only_failed("kafka", unknown, "its name cannot be resolved");
    one_refused.assert_no_failure();
    one_refused.assert("kafka", &nobody, "warning", "the relay uses the others");
    assert_cluster_failed(&no_tls, "SSL handshake failed");
    assert_cluster_failed(&foreign, "certificate");
    trusted.assert("kafka", "cluster", "ok", "connected and logged in");
    trusted.assert(
        "kafka",
        "certificates",
        "untried",
        "librdkafka does not show",
    );
    assert_cluster_failed(&wrong_password, "uthentication failed");
    assert!(
        !wrong_password.to_string().contains("hunter2"),
        "{wrong_password}"
    );
    // Nobody listens on the port that this listener advertises. On a busy machine, librdkafka may use it before the
    // bootstrap server has answered us.
    let advertised = proxied.advertised.to_string();
    let is_reported = misadvertised.of("kafka", "").into_iter().any(|line| {
        let [text, action] = ["text", "action"].map(|field| line[field].as_str().unwrap_or(""));
        line["result"] == "failed"
            && text.contains(&advertised)
            && action.contains("advertised.listeners")
    });
    assert!(is_reported, "{misadvertised}");
}

fn topics_and_limits(kafka: &Kafka) {
    let there = of(kafka, "there");
    let [
        exists,
        transactions,
        not_created,
        awaited,
        replicas,
        small,
        small_client,
        large_body,
        automatic,
    ] = check_all([
        there.clone(),
        there.with("RECALL_KAFKA__EXACTLY_ONCE", "true"),
        there.with("RECALL_KAFKA__CREATE_TOPICS", "false"),
        there.with("RECALL_ANSWER_AFTER", "broker"),
        of(kafka, "new").set("RECALL_KAFKA__REPLICATION_FACTOR", "3"),
        of(kafka, "small"),
        there.with("RECALL_KAFKA__PROPERTIES__MESSAGE_MAX_BYTES", "10000"),
        of(kafka, "new").set("RECALL_HTTP__MAX_BODY_BYTES", "2MiB"),
        of(kafka, "new").set("RECALL_KAFKA__PROPERTIES__ALLOW_AUTO_CREATE_TOPICS", "true"),
    ]);
    exists.assert_no_failure();
    exists.assert("kafka", "cluster", "ok", "the cluster has 1 brokers");
    exists.assert("kafka", "advertised listeners", "ok", "can be reached");
    exists.assert("kafka", "topic there", "ok", "exists and has 3 partitions");
    exists.assert(
        "kafka",
        "dead-letter topic there.dead",
        "ok",
        "the relay may create it",
    );
    exists.assert("kafka", "largest message", "ok", "every callback fits");
    exists.assert("kafka", "publishing", "untried", "the right Write");
    assert!(exists.of("kafka", "transactions").is_empty(), "{exists}");
    transactions.assert("kafka", "transactions", "untried", "a running relay");
    let missing = "does not exist, and kafka.create_topics is false";
    not_created.assert_only_failed("kafka", "dead-letter topic there.dead", missing);
    awaited.assert_no_failure();
    awaited.assert("kafka", "topic there", "warning", "but one replica");
    replicas.assert("kafka", "topic new", "failed", "could not be created");

    automatic.assert_no_failure();
    let creatable = "the relay may create it";
    automatic.assert("kafka", "topic new", "ok", creatable);

    let assert_too_small = |checked: &Checked, limit: &str| {
        checked.assert_no_failure();
        checked.assert("kafka", "largest message", "warning", limit);
    };
    assert_too_small(&small, "max.message.bytes of topic small is 20000 bytes");
    assert_too_small(
        &small_client,
        "kafka.properties.message.max.bytes is 10000 bytes",
    );
    assert_too_small(
        &large_body,
        "message.max.bytes of the cluster, for topic new",
    );
}

fn rights(kafka: &Kafka) {
    let user = |topic: &str| kafka.as_user(of(kafka, topic));
    let checked = check(&user("hidden"), &[]);
    let lacks = "user relay lacks the right Describe on topic hidden";
    checked.assert("kafka", "topic hidden", "failed", lacks);
    for topic in ["hidden", "hidden.dead"] {
        kafka.permit(Resource::Topic(topic), Operation::Describe);
    }
    let checked = check(&user("hidden"), &[]);
    let lacks = "user relay lacks the right Create on topic hidden.dead";
    checked.assert_only_failed("kafka", "dead-letter topic hidden.dead", lacks);
    checked.assert("kafka", "topic hidden", "ok", "exists");
    let untried = "the cluster does not show the limit of topic hidden: ";
    checked.assert("kafka", "largest message", "untried", untried);
}

fn frozen(kafka: &Kafka) {
    kafka.freeze();
    let began = Instant::now();
    let checked = check(&of(kafka, "there"), &[]);
    let took = began.elapsed();
    kafka.thaw();
    assert_cluster_failed(&checked, "did not answer within 7 s");
    assert!(took < Duration::from_secs(20), "{took:?}");
    checked.assert("upstream", "upstream.url", "warning", "not set");
}
