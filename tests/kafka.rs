//! Tests that apply only to Kafka, on a real Kafka. `brokers.rs` tests what holds for RabbitMQ, too.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::time::Duration;

use rig::{
    Broker as _, Kafka, Load, Recall, Setup, TIMEOUT, assert_kept, large_recall, poll,
    read_dead_letters, recall_query, until,
};
use serde_json::Value;

#[test]
fn a_record_has_its_events_key_partition_and_headers() {
    let kafka = Kafka::shared();
    let relay = kafka.settings(Setup::new(), "headers").start();
    for group in ["a", "b", "@TGS#c d"] {
        relay.recalls(group, 1..=60);
    }
    relay.until_drained("kafka");
    for record in kafka.read("headers", 180, TIMEOUT) {
        let event: Value = serde_json::from_slice(&record.payload).unwrap();
        let key = record.key.as_deref().unwrap();
        assert_eq!(key, event["partitionkey"]);
        assert_eq!(record.partition, partition_of_a_java_client(key, 6));
        let attribute = |name: &str| event[name].as_str().unwrap().to_owned();
        let expected = [
            (
                "content-type",
                "application/cloudevents+json; charset=UTF-8".to_owned(),
            ),
            ("ce_specversion", "1.0".to_owned()),
            ("ce_id", attribute("id")),
            (
                "ce_type",
                "com.tencent.im.group.message.recalled".to_owned(),
            ),
            ("ce_source", "/tencent-im/1400000001".to_owned()),
            ("ce_time", "2022-12-09T08:26:54.123Z".to_owned()),
            ("ce_subject", attribute("subject")),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(record.headers, expected);
    }
    relay.stop();
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
    let topic = "too-large";
    let setup = kafka.settings(Setup::new(), topic);
    kafka.create_topic(topic, 2, &[("max.message.bytes", "4000")]);
    let relay = setup.start();
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
    assert_eq!(
        dead[0].header("ce_type"),
        Some("com.tencent.im.group.message.recalled")
    );
    assert!(dead[0].payload.len() > 4000);
    assert_eq!(relay.refused_events("kafka"), 1);
    relay.stop();
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
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
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
