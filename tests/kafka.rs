//! Tests that apply only to Kafka, on a real Kafka. `brokers.rs` tests what holds for RabbitMQ, too.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::time::Duration;

use recall_relay::vendor::{BodyFormat, CallbackKind};
use rig::kafka::{Operation, PASSWORD, Record, Resource, STRICT};
use rig::{
    APP, Broker as _, Kafka, Load, Recall, Relay, Setup, TIMEOUT, assert_kept, large_recall, poll,
    read_dead_letters, recall, recall_query, until,
};
use serde_json::Value;

/// The time of the recalls, in Unix milliseconds.
const AT_MS: u64 = 1_670_574_414_123;

/// Both content modes of the CloudEvents Kafka protocol binding.
const CONTENT_MODES: [&str; 2] = ["structured", "binary"];

/// The attributes that every event has, but for `datacontenttype`, which is the record's `content-type`.
const ATTRIBUTES: [&str; 7] = [
    "dataschema",
    "id",
    "partitionkey",
    "source",
    "specversion",
    "time",
    "type",
];

/// The keys of two dead letters: a rejected callback, and an event that the broker refused.
const REJECTED: &str = "1400000001";
const REFUSED: &str = "1400000001:large";

#[test]
fn a_record_has_its_events_key_partition_headers_and_value() {
    let kafka = Kafka::shared();
    for mode in CONTENT_MODES {
        let topic = format!("each-kind-{mode}");
        let dead_letter_topic = format!("{topic}.dead");
        kafka.create_topic(&topic, 6, &[("max.message.bytes", "4000")]);
        kafka.create_topic(&dead_letter_topic, 6, &[]);
        let setup = kafka.settings(Setup::new(), &topic);
        let setup = setup.set("RECALL_KAFKA__CONTENT_MODE", mode);
        let relay = setup.start();
        let accepted = |kind: CallbackKind, body: String| {
            let answer = relay.post(&kind.query(APP, None), body);
            assert!(answer.is_ok(), "{answer:?}");
        };
        let format = BodyFormat::default();
        accepted(CallbackKind::Group, recall("@TGS#c d", 1));
        // Escaped in JSON, but not in a header.
        accepted(CallbackKind::Group, recall("\"\\\u{7}\u{e9}", 1));
        accepted(CallbackKind::C2c, format.c2c("a:b", "c", 1, AT_MS));
        accepted(CallbackKind::C2c, format.c2c("a", "b:c", 1, AT_MS));
        let body = format.official_account("news", 1..=3, AT_MS);
        accepted(CallbackKind::OfficialAccount, body);
        let community = BodyFormat {
            group_type: "Community".to_owned(),
            ..format
        };
        let body = community.group("g", [1], |_| "id".to_owned(), AT_MS);
        accepted(CallbackKind::Group, body);
        accepted(CallbackKind::Group, large_recall("large", 20_000));
        assert_eq!(relay.post(&recall_query(), "{").status, 400);
        relay.until_drained("kafka");
        relay.stop();

        let published = published_bytes(&setup);
        let kinds: BTreeSet<_> = published
            .values()
            .map(|body| body_field(body, "type"))
            .collect();
        assert_eq!((published.len(), kinds.len()), (8, 4), "{published:?}");
        let events = kafka.read(&topic, 6, TIMEOUT);
        let dead_letters = kafka.read(&dead_letter_topic, 2, TIMEOUT);
        // After the refusal, some may have been published again.
        let keys = |records: &[Record]| -> BTreeSet<_> {
            records.iter().filter_map(|it| it.key.clone()).collect()
        };
        assert_eq!(
            keys(&dead_letters),
            BTreeSet::from([REJECTED.to_owned(), REFUSED.to_owned()])
        );
        assert_eq!(keys(&events).len(), 6, "{events:?}");
        for record in events.iter().chain(&dead_letters) {
            let key = record.key.as_deref().unwrap();
            let body = &published[key];
            assert_eq!(key, body_field(body, "partitionkey"));
            assert_eq!(record.partition, partition_of_a_java_client(key, 6));

            let payload = std::str::from_utf8(&record.payload).unwrap();
            let mut expected = BTreeMap::new();
            if mode == "structured" {
                assert_eq!(payload, body);
                let content_type = "application/cloudevents+json";
                expected.insert("content-type".to_owned(), content_type.to_owned());
            } else {
                assert!(
                    body.ends_with(&format!(r#","data":{payload}}}"#)),
                    "{payload}"
                );
                let content_type = "application/json";
                expected.insert("content-type".to_owned(), content_type.to_owned());
                let subject = (key != REJECTED).then_some("subject");
                for name in ATTRIBUTES.into_iter().chain(subject) {
                    expected.insert(format!("ce_{name}"), body_field(body, name));
                }
            }
            if key == REFUSED {
                let detail = "Message production error: MessageSizeTooLarge (Broker: Message size too large)";
                expected.insert("recall_reason".to_owned(), "too_large".to_owned());
                expected.insert("recall_detail".to_owned(), detail.to_owned());
            }
            let headers: BTreeMap<_, _> = record.headers.iter().cloned().collect();
            assert_eq!(headers, expected);
            assert_eq!(record.headers.len(), headers.len(), "{record:?}");
        }
    }
}

/// The structured form of each event in a spool, by the event's key.
fn published_bytes(setup: &Setup) -> BTreeMap<String, String> {
    let spool = rusqlite::Connection::open(setup.spool()).unwrap();
    let mut rows = spool
        .prepare("SELECT conversation, body FROM events")
        .unwrap();
    let rows = rows
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    rows.map(Result::unwrap).collect()
}

/// A string in an event.
fn body_field(body: &str, name: &str) -> String {
    let event: Value = serde_json::from_str(body).unwrap();
    event[name].as_str().unwrap().to_owned()
}

/// Kafka's default partitioner for Java, which uses `org.apache.kafka.common.utils.Utils.murmur2`.
#[expect(clippy::cast_possible_wrap, reason = "as in the original")]
fn partition_of_a_java_client(key: &str, partitions: i32) -> i32 {
    let (m, data) = (0x5bd1_e995_u32, key.as_bytes());
    let mut h = 0x9747_b28c_u32 ^ u32::try_from(data.len()).unwrap();
    let chunks = data.chunks_exact(4);
    let rest = chunks.remainder();
    for chunk in chunks {
        let mut k = u32::from_le_bytes(chunk.try_into().unwrap()).wrapping_mul(m);
        k ^= k >> 24;
        h = h.wrapping_mul(m) ^ k.wrapping_mul(m);
    }
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * index);
        }
        h = h.wrapping_mul(m);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(m);
    h ^= h >> 15;
    (h & 0x7fff_ffff) as i32 % partitions
}

#[test]
fn a_too_large_record_becomes_a_dead_letter() {
    let kafka = Kafka::shared();
    for mode in CONTENT_MODES {
        let topic = &format!("too-large-{mode}");
        let setup = kafka.settings(Setup::new(), topic);
        kafka.create_topic(topic, 2, &[("max.message.bytes", "4000")]);
        let relay = setup.set("RECALL_KAFKA__CONTENT_MODE", mode).start();
        let mut sent = Vec::new();
        for number in 1..=40 {
            for group in ["a", "b", "c"] {
                sent.extend(relay.recalls(group, number..=number));
            }
            if number == 20 {
                let large = relay.post(&recall_query(), large_recall("b", 20_000));
                assert!(large.is_ok(), "{large:?}");
            }
        }
        relay.until_drained("kafka");
        assert_kept(&sent, &kafka.recalls(topic, sent.len()));
        let dead = kafka.read(&format!("{topic}.dead"), 1, TIMEOUT);
        assert_eq!(dead.len(), 1);
        assert_eq!(dead[0].header("recall_reason"), Some("too_large"));
        assert!(
            dead[0]
                .header("recall_detail")
                .unwrap()
                .contains("MessageSizeTooLarge"),
            "{dead:?}"
        );
        let event = dead[0].event();
        assert_eq!(event["type"], "com.tencent.im.group.message.recalled");
        assert!(dead[0].payload.len() > 4000);
        assert_eq!(relay.refused_events("kafka"), 1);
        relay.stop();
    }
}

/// Regression: a topic's limit applies to whole batches, and a backlog makes large ones. The poison search bisected
/// the window repeatedly, although no single record was too large.
#[test]
fn refused_batches_are_made_smaller() {
    let kafka = Kafka::shared();
    let topic = "small-batches";
    let setup = kafka.settings(Setup::new(), topic);
    kafka.create_topic(topic, 1, &[("max.message.bytes", "20000")]);
    let offline = setup.with("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1");
    let relay = offline.start();
    let load = Load::start(relay.callbacks, "backlog", 20, Duration::ZERO);
    until("a backlog", || (load.acknowledged() > 2000).then_some(()));
    let acknowledged = load.stop();
    relay.kill();

    let relay = setup.start();
    relay.until_drained("kafka");
    assert_kept(&acknowledged, &kafka.recalls(topic, acknowledged.len()));
    assert_eq!(relay.refused_events("kafka"), 0);
    let times = relay.log_entries("batch_size_reduced").len();
    assert!((1..=6).contains(&times), "{times} times:\n{}", relay.log());
    relay.stop();
}

#[test]
fn a_record_too_large_for_librdkafka_stays_in_the_spool() {
    let kafka = Kafka::shared();
    let topic = "too-large-here";
    let setup = kafka.settings(Setup::new(), topic);
    let setup = setup.set("RECALL_KAFKA__PROPERTIES__MESSAGE_MAX_BYTES", "4000");
    let relay = setup.start();
    let mut sent = relay.recalls("a", 1..=1);
    let large = relay.post(&recall_query(), large_recall("a", 20_000));
    assert!(large.is_ok(), "{large:?}");
    sent.extend(relay.recalls("a", 2..=2));
    relay.until_drained("kafka");
    assert_eq!(kafka.recalls(topic, 2), sent);
    relay.stop();
    // The producer's limit applies to dead letters, too.
    let kept = read_dead_letters(&setup);
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(kept[0].reason, "too_large");
    assert!(kept[0].bytes > 4000, "{kept:?}");
}

#[test]
fn waits_for_a_missing_topic_it_may_not_create() {
    let kafka = Kafka::shared();
    let setup = kafka.settings(Setup::new(), "missing");
    let relay = setup.set("RECALL_KAFKA__CREATE_TOPICS", "false").start();
    relay.until_down("kafka", "topic missing");
    let sent = relay.recalls("a", 1..=1);
    kafka.create_topic("missing", 1, &[]);
    kafka.create_topic("missing.dead", 1, &[]);
    relay.until_drained("kafka");
    assert_eq!(kafka.recalls("missing", 1), sent);
    relay.stop();
}

/// A broker that has lost confirmed records expects a lower sequence number than the producer sends. The producer then
/// fails permanently, and the relay must create a new one.
#[test]
fn a_producer_with_a_fatal_error_is_replaced() {
    let mut kafka = Kafka::shared();
    let topic = "fatal";
    let setup = kafka.settings(Setup::new(), topic);
    kafka.create_topic(topic, 1, &[]);
    let relay = setup.start();
    for number in 1..=3 {
        relay.recalls("a", number..=number);
        relay.until_drained("kafka");
    }
    kafka.kill();
    kafka.lose_last_batch(topic, 0);
    kafka.resume();
    relay.until_sink("kafka", "up");
    relay.recalls("a", 4..=9);
    relay.until_drained("kafka");
    relay.until_sink("kafka", "up");
    let found = kafka.recalls(topic, 8);
    let left: Vec<Recall> = [1, 2, 4, 5, 6, 7, 8, 9]
        .map(|number| Recall::new("a", number))
        .to_vec();
    assert_eq!(assert_kept(&left, &found), 0);
    let down = relay.down_entries();
    let reasons = down.iter().map(|entry| entry["reason"].to_string());
    let fatal = |reason: String| reason.contains("OutOfOrderSequenceNumber");
    assert!(reasons.into_iter().any(fatal), "{}", relay.log());
    relay.stop();
}

/// A broker that returns after its session has expired reports for a moment that the cluster has no brokers; here it
/// does so until it is restarted. librdkafka may then forget all brokers and never reconnect (its issue 5301): the
/// relay must create a new producer.
#[test]
fn a_producer_that_lost_every_broker_is_replaced() {
    let mut kafka = Kafka::shared();
    let topic = "forgotten";
    let setup = kafka.settings(Setup::new(), topic);
    let relay = setup
        .set(
            "RECALL_KAFKA__PROPERTIES__TOPIC_METADATA_REFRESH_INTERVAL_MS",
            "100",
        )
        .start();
    let replaced = || relay.log_entry("producer_replaced").is_some();
    let mut sent = Vec::new();
    // Two threads of librdkafka race: it forgets the brokers in about three of four attempts.
    for number in 1..=10 {
        sent.extend(relay.recalls("a", number..=number));
        relay.until_drained("kafka");
        kafka.unregister();
        // The relay checks every five seconds.
        let was_replaced = poll(Duration::from_secs(7), replaced);
        kafka.kill();
        kafka.resume();
        if was_replaced {
            break;
        }
    }
    assert!(replaced(), "{}", relay.log());
    sent.extend(relay.recalls("b", 1..=1));
    relay.until_drained("kafka");
    relay.until_sink("kafka", "up");
    assert_kept(&sent, &kafka.recalls(topic, sent.len()));
    relay.stop();
}

#[test]
fn authenticates_with_plain_and_scram() {
    let kafka = Kafka::shared();
    let scram = Kafka::has_scram("authenticates_with_plain_and_scram").then_some("SCRAM-SHA-256");
    for mechanism in iter::once("PLAIN").chain(scram) {
        let topic = format!("sasl-{}", mechanism.to_lowercase());
        let setup = kafka.as_user(kafka.settings(Setup::new(), &topic));
        let setup = setup.set("RECALL_KAFKA__PROPERTIES__SASL_MECHANISM", mechanism);
        let wrong = setup.with("RECALL_KAFKA__PROPERTIES__SASL_PASSWORD", "hunter2");
        let relay = wrong.start();
        let down = relay.until_down("kafka", "uthentication");
        assert!(!down.to_string().contains("hunter2"), "{down}");
        let sent = relay.recalls("a", 1..=1);
        relay.kill();

        let relay = setup.start();
        relay.until_drained("kafka");
        assert_eq!(kafka.recalls(&topic, 1), sent);
        relay.stop();
    }
}

/// How long an outage is watched: longer than librdkafka's pauses between attempts, which are at most 10 s.
const WATCHED: Duration = Duration::from_secs(15);

/// Asserts that an outage was logged once, and its reason changed at most `changes` times.
#[track_caller]
fn assert_logged_once(relay: &Relay, changes: usize) {
    assert_eq!(relay.down_entries().len(), 1, "{}", relay.log());
    let told = relay.log_entries("sink_still_down").len();
    assert!(told <= changes, "{}", relay.log());
    let errors = relay.log_entries("client_error");
    assert!(errors.len() <= changes, "{}", relay.log());
}

/// Regression: the reason remained "1/1 brokers are down", although librdkafka knew better.
#[test]
fn a_password_changed_while_running_is_the_reason() {
    let mut kafka = Kafka::start();
    let relay = kafka
        .as_user(kafka.settings(Setup::new(), "password"))
        .start();
    let mut sent = relay.recalls("a", 1..=1);
    relay.until_drained("kafka");
    kafka.stop();
    relay.until_sink("kafka", "down");
    sent.extend(relay.recalls("a", 2..=6));
    kafka.change_password(PASSWORD, "new-secret");
    kafka.resume();
    relay.until_reason("kafka", "Authentication failed");
    relay.assert_reason_stays("kafka", "Authentication failed", WATCHED);
    assert_logged_once(&relay, 2);
    let told = relay.log_entries("sink_still_down");
    let told = told.last().unwrap();
    assert!(told["reason"].to_string().contains("Authentication failed"));
    assert_eq!(told["waiting"], 5);
    let errors = relay.log_entries("client_error");
    let authentication =
        |entry: &&Value| entry["error"].to_string().contains("Authentication failed");
    assert_eq!(
        errors.iter().filter(authentication).count(),
        1,
        "{}",
        relay.log()
    );

    kafka.stop();
    kafka.change_password("new-secret", PASSWORD);
    kafka.resume();
    relay.until_drained("kafka");
    assert_eq!(kafka.recalls("password", sent.len()), sent);
    let up = relay.log_entries("sink_up").pop().unwrap();
    assert_eq!(up["waiting"], 5, "{up}");
    assert!(
        up["down_seconds"].as_u64().unwrap() >= WATCHED.as_secs(),
        "{up}"
    );
    let caught_up = relay.log_entries("sink_caught_up").pop().unwrap();
    assert_eq!(caught_up["events"], 5, "{caught_up}");
    relay.stop();
}

/// Regression: the reason was "Local: Fatal error".
#[test]
fn a_right_taken_away_is_named() {
    for exactly_once in ["false", "true"] {
        let kafka = Kafka::start_with(&STRICT);
        let events = Resource::Topic("rights");
        let groups = Resource::Groups("recall-relay-");
        let ids = Resource::TransactionalIds("recall-relay-");
        kafka.create_topic("rights", 2, &[]);
        kafka.create_topic("rights.dead", 2, &[]);
        for (resource, operation) in [
            (events, Operation::Write),
            (events, Operation::Read),
            (Resource::Topic("rights.dead"), Operation::Describe),
            (groups, Operation::Read),
            (ids, Operation::Write),
        ] {
            kafka.permit(resource, operation);
        }
        let setup = kafka.as_user(kafka.settings(Setup::new(), "rights"));
        let relay = setup
            .set("RECALL_KAFKA__EXACTLY_ONCE", exactly_once)
            .start();
        let mut sent = relay.recalls("a", 1..=1);
        relay.until_drained("kafka");
        // A new cluster (seen with 3.9) may answer the first request for an offset with "Not coordinator".
        let outages_before = relay.down_entries().len();

        let mut denied: Vec<_> = vec![(events, Operation::Write, "Write on topic rights")];
        if exactly_once == "true" {
            denied.extend([
                (events, Operation::Read, "Read on topic rights"),
                (groups, Operation::Read, "Read on group recall-relay-"),
                (
                    ids,
                    Operation::Write,
                    "Write on transactional id recall-relay-",
                ),
            ]);
        }
        for (number, (resource, operation, named)) in (2..).zip(denied) {
            kafka.revoke(resource, operation);
            sent.extend(relay.recalls("a", number..=number));
            let named = format!("user relay lacks the right {named}");
            relay.until_reason("kafka", &named);
            relay.assert_reason_stays("kafka", &named, Duration::from_secs(4));
            kafka.permit(resource, operation);
            relay.until_drained("kafka");
        }
        let outages = relay.down_entries().len() - outages_before;
        assert_eq!(outages, sent.len() - 1, "{}", relay.log());
        assert!(
            !relay.log().contains("Local: Fatal error"),
            "{}",
            relay.log()
        );
        relay.stop();
    }
}

#[test]
fn the_right_to_look_up_a_topic_or_create_it_is_named() {
    let kafka = Kafka::start_with(&STRICT);
    kafka.create_topic("hidden", 1, &[]);
    let setup = kafka.as_user(kafka.settings(Setup::new(), "hidden"));
    let relay = setup.start();
    relay.until_reason(
        "kafka",
        "user relay lacks the right Describe on topic hidden",
    );
    kafka.permit(Resource::Topic("hidden"), Operation::Write);
    let dead = Resource::Topic("hidden.dead");
    kafka.permit(dead, Operation::Describe);
    relay.until_reason(
        "kafka",
        "user relay lacks the right Create on topic hidden.dead",
    );
    relay.kill();
}

/// Regression: the sink was "up" and "down" in turns, because the bootstrap server answered.
#[test]
fn a_leader_whose_name_does_not_resolve_is_down_until_it_does() {
    for exactly_once in ["false", "true"] {
        let mut kafka = Kafka::new_stopped();
        kafka.advertise_host("no-such-host.invalid");
        kafka.resume();
        // Otherwise the relay would be down because it could not create them.
        for topic in ["unresolved", "unresolved.dead"] {
            kafka.create_topic(topic, 2, &[]);
        }
        let servers = format!("127.0.0.1:{}", kafka.proxied().listens);
        let relay = kafka
            .settings(Setup::new(), "unresolved")
            .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", &servers)
            .set("RECALL_KAFKA__EXACTLY_ONCE", exactly_once)
            .start();
        relay.recalls("a", 1..=3);
        relay.until_reason("kafka", "resolve");
        let ups = || relay.log_entries("sink_up").len();
        let before = ups();
        relay.assert_reason_stays("kafka", "resolve", WATCHED);
        assert_eq!(ups(), before, "{}", relay.log());
        assert_logged_once(&relay, 2);
        relay.kill();
    }
}
