//! The promises, on a real Kafka.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod rig;

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rig::kafka::{PASSWORD, Record, USER};
use rig::{
    Kafka, Load, Recall, Setup, assert_kept, kill_again_and_again, large_recall, poll,
    recall_query, under_load, until,
};
use serde_json::Value;

/// One broker for all tests of this file, one test at a time: some stop it and start it again.
fn kafka() -> MutexGuard<'static, Kafka> {
    static KAFKA: LazyLock<Mutex<Kafka>> = LazyLock::new(|| Mutex::new(Kafka::start()));
    KAFKA.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A relay's settings for a topic of the test's own, and the topic.
fn setup(kafka: &Kafka, test: &str) -> (Setup, String) {
    let setup = Setup::new()
        .set(
            "RECALL_KAFKA__BOOTSTRAP_SERVERS",
            &kafka.bootstrap_servers(),
        )
        .set("RECALL_KAFKA__TOPIC", test)
        .set("RECALL_KAFKA__DEAD_LETTER_TOPIC", &format!("{test}.dead"));
    (setup, test.to_owned())
}

const TIMEOUT: Duration = Duration::from_secs(60);

fn recalls(records: &[Record]) -> Vec<Recall> {
    records
        .iter()
        .map(|record| Recall::of(&record.payload))
        .collect()
}

#[test]
fn every_event_arrives_once_with_its_key_and_headers_and_in_order() {
    let kafka = kafka();
    let (setup, topic) = setup(&kafka, "once");
    let relay = setup.start();
    let mut sent = Vec::new();
    for number in 1..=60 {
        for group in ["a", "b", "@TGS#c d"] {
            assert!(relay.recall(group, number).is_ok());
            sent.push(Recall::new(group, number));
        }
    }
    relay.until_drained("kafka");
    let records = kafka.read(&topic, sent.len(), TIMEOUT);
    assert_eq!(records.len(), sent.len());
    assert_eq!(assert_kept(&sent, &recalls(&records)), 0);
    for record in &records {
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

/// `org.apache.kafka.common.utils.Utils.murmur2`, as its default partitioner uses it.
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
fn a_broker_that_is_stopped_and_started_loses_and_repeats_nothing() {
    let mut kafka = kafka();
    let (setup, topic) = setup(&kafka, "stopped");
    let relay = setup.start();
    relay.until_sink("kafka", "up");
    let acknowledged = under_load(&relay, || {
        kafka.stop();
        relay.until_sink("kafka", "down");
        assert_eq!(relay.admin("/readyz").status, 200);
        kafka.resume();
    });
    relay.until_drained("kafka");
    relay.until_sink("kafka", "up");
    let found = recalls(&kafka.read(&topic, acknowledged.len(), TIMEOUT));
    assert_eq!(assert_kept(&acknowledged, &found), 0);
    assert_eq!(
        relay
            .log_entries("sink is down; events stay in the spool")
            .len(),
        1,
        "{}",
        relay.log()
    );
    relay.stop();
}

#[test]
fn a_broker_that_is_killed_loses_nothing() {
    let mut kafka = kafka();
    let (setup, topic) = setup(&kafka, "killed");
    let relay = setup.start();
    relay.until_sink("kafka", "up");
    let acknowledged = under_load(&relay, || {
        kafka.kill();
        kafka.resume();
    });
    relay.until_drained("kafka");
    let found = recalls(&kafka.read(&topic, acknowledged.len(), TIMEOUT));
    assert_kept(&acknowledged, &found);
    relay.stop();
}

#[test]
fn a_broker_that_is_absent_at_the_start_is_waited_for() {
    let mut kafka = kafka();
    kafka.stop();
    let (setup, topic) = setup(&kafka, "absent");
    let relay = setup.start();
    relay.until_sink("kafka", "down");
    let mut acknowledged = under_load(&relay, || {});
    acknowledged.extend(relay.recalls("one by one", 1..=100));
    assert_eq!(
        relay
            .log_entries("sink is down; events stay in the spool")
            .len(),
        1,
        "{}",
        relay.log()
    );
    assert!(relay.log_entries("sink is up").is_empty());
    kafka.resume();
    relay.until_drained("kafka");
    relay.until_sink("kafka", "up");
    acknowledged.extend(relay.recalls("one by one", 101..=200));
    relay.until_drained("kafka");
    let found = recalls(&kafka.read(&topic, acknowledged.len(), TIMEOUT));
    assert_eq!(assert_kept(&acknowledged, &found), 0);
    relay.stop();
}

#[test]
fn what_is_not_published_at_a_stop_goes_out_at_the_next_start() {
    let mut kafka = kafka();
    let (setup, topic) = setup(&kafka, "left");
    let setup = setup.set("RECALL_DRAIN_TIMEOUT", "1s");
    kafka.stop();
    let relay = setup.start();
    let acknowledged = under_load(&relay, || {});
    relay.stop();
    kafka.resume();
    let relay = setup.start();
    relay.until_drained("kafka");
    let found = recalls(&kafka.read(&topic, acknowledged.len(), TIMEOUT));
    assert_eq!(assert_kept(&acknowledged, &found), 0);
    relay.stop();
}

#[test]
fn every_acknowledged_callback_is_found_after_kill_9_of_the_relay() {
    let kafka = kafka();
    let (setup, topic) = setup(&kafka, "relay-killed");
    let acknowledged = kill_again_and_again(&setup, "kafka", 4);
    let found = recalls(&kafka.read(&topic, acknowledged.len(), TIMEOUT));
    let repeated = assert_kept(&acknowledged, &found);
    println!(
        "{} acknowledged, {repeated} of them published again",
        acknowledged.len()
    );
}

#[test]
fn a_record_that_is_too_large_goes_to_the_dead_letters_and_the_rest_goes_on() {
    let kafka = kafka();
    let (setup, topic) = setup(&kafka, "too-large");
    kafka.create_topic(&topic, 2, &[("max.message.bytes", "4000")]);
    let relay = setup.start();
    let mut sent = Vec::new();
    for number in 1..=40 {
        for group in ["a", "b", "c"] {
            assert!(relay.recall(group, number).is_ok());
            sent.push(Recall::new(group, number));
        }
        if number == 20 {
            assert!(
                relay
                    .post(&recall_query(), large_recall("b", 20_000))
                    .is_ok()
            );
        }
    }
    relay.until_drained("kafka");
    let found = recalls(&kafka.read(&topic, sent.len(), TIMEOUT));
    assert_kept(&sent, &found);
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
    assert_eq!(
        relay.metric(r#"recall_sink_refused_events_total{sink="kafka"}"#),
        "1"
    );
    relay.stop();
}

/// A backlog makes large batches, and a topic's limit holds for whole batches: the window was narrowed
/// again and again, and no record was to blame.
#[test]
fn batches_that_the_topic_does_not_take_are_made_smaller() {
    let kafka = kafka();
    let (setup, topic) = setup(&kafka, "small-batches");
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "20000")]);
    let away = setup.with("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1");
    let relay = away.start();
    let load = Load::start(relay.callbacks, "backlog", 20, Duration::ZERO);
    until("a backlog", || (load.acknowledged() > 2000).then_some(()));
    let acknowledged = load.stop();
    relay.kill();

    let relay = setup.start();
    relay.until_drained("kafka");
    let found = recalls(&kafka.read(&topic, acknowledged.len(), TIMEOUT));
    assert_kept(&acknowledged, &found);
    let refused = r#"recall_sink_refused_events_total{sink="kafka"}"#;
    assert_eq!(relay.metric(refused), "0");
    let smaller = "the cluster takes no large batches; they are made smaller";
    let times = relay.log_entries(smaller).len();
    assert!((1..=6).contains(&times), "{times} times:\n{}", relay.log());
    relay.stop();
}

#[test]
fn a_record_that_librdkafka_does_not_take_goes_to_the_dead_letters_or_stays() {
    let kafka = kafka();
    let (setup, topic) = setup(&kafka, "too-large-here");
    let setup = setup.set("RECALL_KAFKA__PROPERTIES__MESSAGE_MAX_BYTES", "4000");
    let relay = setup.start();
    assert!(relay.recall("a", 1).is_ok());
    assert!(
        relay
            .post(&recall_query(), large_recall("a", 20_000))
            .is_ok()
    );
    assert!(relay.recall("a", 2).is_ok());
    relay.until_drained("kafka");
    let found = recalls(&kafka.read(&topic, 2, TIMEOUT));
    assert_eq!(found, [Recall::new("a", 1), Recall::new("a", 2)]);
    relay.stop();
    // The same limit holds for the dead letters: the spool keeps it.
    let spool = rusqlite::Connection::open(setup.spool()).unwrap();
    let kept: (String, u64) = spool
        .query_row(
            "SELECT reason, length(body) FROM dead_letters WHERE sink = 'kafka'",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    assert!(kept.0 == "too_large" && kept.1 > 4000, "{kept:?}");
}

#[test]
fn a_callback_that_is_not_understood_goes_to_the_dead_letters() {
    let kafka = kafka();
    let (setup, topic) = setup(&kafka, "rejected");
    let relay = setup.start();
    assert_eq!(relay.post(&recall_query(), "{").status, 400);
    assert!(relay.recall("a", 1).is_ok());
    relay.until_drained("kafka");
    let dead = kafka.read(&format!("{topic}.dead"), 1, TIMEOUT);
    assert_eq!(dead.len(), 1);
    assert_eq!(
        dead[0].header("ce_type"),
        Some("com.tencent.im.callback.rejected")
    );
    assert_eq!(dead[0].header("recall_reason"), None);
    assert_eq!(
        recalls(&kafka.read(&topic, 1, TIMEOUT)),
        [Recall::new("a", 1)]
    );
    relay.stop();
}

#[test]
fn a_topic_that_is_missing_is_waited_for_where_it_must_not_be_created() {
    let kafka = kafka();
    let (setup, topic) = setup(&kafka, "missing");
    let relay = setup.set("RECALL_KAFKA__CREATE_TOPICS", "false").start();
    let down = relay.until_sink("kafka", "down");
    assert!(
        down["reason"].as_str().unwrap().contains("topic missing"),
        "{down}"
    );
    assert!(relay.recall("a", 1).is_ok());
    kafka.create_topic(&topic, 1, &[]);
    kafka.create_topic(&format!("{topic}.dead"), 1, &[]);
    relay.until_drained("kafka");
    assert_eq!(
        recalls(&kafka.read(&topic, 1, TIMEOUT)),
        [Recall::new("a", 1)]
    );
    relay.stop();
}

/// A topic that was deleted under way was waited for, for half a minute, before the relay created it
/// again.
#[test]
fn a_topic_that_is_deleted_is_created_again_soon() {
    let kafka = kafka();
    let (setup, topic) = setup(&kafka, "deleted");
    let relay = setup.start();
    assert!(relay.recall("a", 1).is_ok());
    relay.until_drained("kafka");
    kafka.delete_topic(&topic);
    let began = Instant::now();
    assert!(relay.recall("a", 2).is_ok());
    relay.until_drained("kafka");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    let found = recalls(&kafka.read(&topic, 1, TIMEOUT));
    assert_eq!(found, [Recall::new("a", 2)]);
    relay.stop();
}

/// A broker that comes back without what it had confirmed knows other numbers of the producer than the
/// producer itself, which then does nothing any more: the relay needs another one.
#[test]
fn a_producer_that_fails_for_good_is_replaced() {
    let mut kafka = kafka();
    let (setup, topic) = setup(&kafka, "fatal");
    kafka.create_topic(&topic, 1, &[]);
    let relay = setup.start();
    for number in 1..=3 {
        assert!(relay.recall("a", number).is_ok());
        relay.until_drained("kafka");
    }
    kafka.kill();
    kafka.lose_last_batch(&topic, 0);
    kafka.resume();
    relay.until_sink("kafka", "up");
    for number in 4..=9 {
        assert!(relay.recall("a", number).is_ok());
    }
    relay.until_drained("kafka");
    relay.until_sink("kafka", "up");
    let found = recalls(&kafka.read(&topic, 8, TIMEOUT));
    let left: Vec<Recall> = [1, 2, 4, 5, 6, 7, 8, 9]
        .map(|number| Recall::new("a", number))
        .to_vec();
    assert_eq!(assert_kept(&left, &found), 0);
    let down = relay.log_entries("sink is down; events stay in the spool");
    let reasons = down.iter().map(|entry| entry["reason"].to_string());
    let fatal = |reason: String| reason.contains("OutOfOrderSequenceNumber");
    assert!(reasons.into_iter().any(fatal), "{}", relay.log());
    relay.stop();
}

/// A broker that comes back after its session has expired says for a moment that the cluster has no
/// brokers; here it says so until it is started again. librdkafka may forget all of them then, and asks
/// nobody any more (its issue 5301): the relay needs another producer.
#[test]
fn a_producer_that_has_forgotten_every_broker_is_replaced() {
    let mut kafka = kafka();
    let (setup, topic) = setup(&kafka, "forgotten");
    let relay = setup
        .set(
            "RECALL_KAFKA__PROPERTIES__TOPIC_METADATA_REFRESH_INTERVAL_MS",
            "100",
        )
        .start();
    let replaced = || {
        let log = relay.log();
        log.contains("the producer knows no broker any more")
    };
    let mut sent = Vec::new();
    // Two threads of librdkafka race for it: three times out of four it forgets.
    for number in 1..=10 {
        sent.push(Recall::new("a", number));
        assert!(relay.recall("a", number).is_ok());
        relay.until_drained("kafka");
        kafka.unregister();
        // The relay looks every five seconds.
        let done = poll(Duration::from_secs(7), replaced);
        kafka.kill();
        kafka.resume();
        if done {
            break;
        }
    }
    assert!(replaced(), "{}", relay.log());
    sent.push(Recall::new("b", 1));
    assert!(relay.recall("b", 1).is_ok());
    relay.until_drained("kafka");
    relay.until_sink("kafka", "up");
    assert_kept(&sent, &recalls(&kafka.read(&topic, sent.len(), TIMEOUT)));
    relay.stop();
}

#[test]
fn it_authenticates_with_plain_and_scram() {
    let kafka = kafka();
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        let (setup, topic) = setup(&kafka, &format!("sasl-{}", mechanism.to_lowercase()));
        let setup = setup
            .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", &kafka.sasl_servers())
            .set(
                "RECALL_KAFKA__PROPERTIES__SECURITY_PROTOCOL",
                "SASL_PLAINTEXT",
            )
            .set("RECALL_KAFKA__PROPERTIES__SASL_MECHANISM", mechanism)
            .set("RECALL_KAFKA__PROPERTIES__SASL_USERNAME", USER);
        let relay = setup
            .with("RECALL_KAFKA__PROPERTIES__SASL_PASSWORD", "wrong")
            .start();
        let down = relay.until_sink("kafka", "down");
        assert!(!down.to_string().contains("wrong\""), "{down}");
        assert!(relay.recall("a", 1).is_ok());
        relay.kill();

        let relay = setup
            .with("RECALL_KAFKA__PROPERTIES__SASL_PASSWORD", PASSWORD)
            .start();
        relay.until_drained("kafka");
        assert_eq!(
            recalls(&kafka.read(&topic, 1, TIMEOUT)),
            [Recall::new("a", 1)]
        );
        relay.stop();
    }
}
