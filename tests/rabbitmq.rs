//! Tests that apply only to RabbitMQ, on a real RabbitMQ. `brokers.rs` tests what holds for Kafka, too.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use recall_relay::vendor::{BodyFormat, CallbackKind};
use rig::{
    Broker as _, RabbitMq, Recall, Relay, Setup, TIMEOUT, assert_kept, poll, read_dead_letters,
    recall_query, under_load, until,
};
use serde_json::Value;

#[test]
fn a_message_has_its_events_properties_and_routing_key() {
    let rabbitmq = RabbitMq::shared();
    let relay = rabbitmq.settings(Setup::new(), "properties").start();
    for group in ["a", "b", "@TGS#c d"] {
        relay.recalls(group, 1..=60);
    }
    relay.until_drained("rabbitmq");
    for delivery in rabbitmq.read("properties", 180, TIMEOUT) {
        let event: Value = serde_json::from_slice(&delivery.body).unwrap();
        assert_eq!(
            (delivery.exchange.as_str(), delivery.routing_key.as_str()),
            ("properties", "1400000001.group.Public")
        );
        assert_eq!(delivery.message_id.as_deref(), event["id"].as_str());
        assert_eq!(
            delivery.kind.as_deref(),
            Some("com.tencent.im.group.message.recalled")
        );
        assert_eq!(
            delivery.content_type.as_deref(),
            Some("application/cloudevents+json")
        );
        assert_eq!(
            (delivery.persistent, delivery.timestamp),
            (true, Some(1_670_574_414))
        );
        assert_eq!(delivery.app_id.as_deref(), Some("recall-relay"));
    }
    relay.stop();
}

/// Hosted services limit the channels of a connection or of a user.
#[test]
fn fewer_channels_than_wanted_are_enough() {
    let rabbitmq = RabbitMq::start_with(&["channel_max = 5"]);
    let publish = |name: &str, uri: Option<&str>| {
        let mut setup = rabbitmq.settings(Setup::new(), name);
        if let Some(uri) = uri {
            setup = setup.set("RECALL_RABBITMQ__URI", uri);
        }
        let relay = setup.start();
        let groups = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let sent: Vec<_> = groups
            .iter()
            .flat_map(|group| relay.recalls(group, 1..=30))
            .collect();
        relay.until_drained("rabbitmq");
        assert_kept(&sent, &rabbitmq.recalls(name, sent.len()));
        relay.stop();
    };
    publish("channels-of-node", None);

    rabbitmq.ctl(&["add_user", "limited", "limited"]);
    rabbitmq.ctl(&["set_permissions", "limited", ".*", ".*", ".*"]);
    let limit = r#"{"max-channels": 2}"#;
    rabbitmq.ctl(&["set_user_limits", "limited", limit]);
    let uri = format!("amqp://limited:limited@127.0.0.1:{}", rabbitmq.port());
    publish("channels-of-user", Some(&uri));
}

/// Some hosted services offer only classic queues.
#[test]
fn queues_have_the_configured_type() {
    let rabbitmq = RabbitMq::shared();
    for (name, setting, expected) in [
        ("type-default", None, "quorum"),
        ("type-classic", Some("classic"), "classic"),
    ] {
        let mut setup = rabbitmq.settings(Setup::new(), name);
        if let Some(queue_type) = setting {
            setup = setup.set("RECALL_RABBITMQ__QUEUE_TYPE", queue_type);
        }
        let relay = setup.start();
        let sent = relay.recalls("a", 1..=20);
        relay.until_drained("rabbitmq");
        let listed = rabbitmq.ctl(&["-q", "list_queues", "name", "type"]);
        for queue in [name.to_owned(), format!("{name}.dead")] {
            let line = format!("{queue}\t{expected}");
            assert!(listed.lines().any(|it| it == line), "{line:?}: {listed}");
        }
        let found = rabbitmq.read(name, sent.len(), TIMEOUT);
        assert_eq!(found.len(), sent.len());
        relay.stop();
    }
}

/// Sends recall number `number` of the one-to-one conversation f:t.
fn recall_c2c(relay: &Relay, number: u64) {
    let body = BodyFormat::default().c2c("f", "t", number, 1_557_481_126_000);
    let answer = relay.post(&CallbackKind::C2c.query(rig::APP, None), body);
    assert!(answer.is_ok(), "{answer:?}");
}

#[test]
fn an_unroutable_event_is_retried_until_a_queue_is_bound() {
    let rabbitmq = RabbitMq::shared();
    let setup = rabbitmq.settings(Setup::new(), "unbound");
    let relay = setup.set("RECALL_RABBITMQ__QUEUE", "").start();
    relay.until_sink("rabbitmq", "up");
    rabbitmq.bind_queue("unbound", "*.c2c");
    let mut sent = Vec::new();
    for number in 1..=30 {
        let group = if number % 2 == 0 { "a" } else { "b" };
        sent.extend(relay.recalls(group, number..=number));
    }
    relay.until_down("rabbitmq", "events are unroutable");
    // Other events are published in the meantime, without a log line for each.
    (1..=300).for_each(|number| recall_c2c(&relay, number));
    let confirmed = r#"recall_sink_confirmed_events_total{sink="rabbitmq"}"#;
    until("the other events to be confirmed", || {
        (relay.metric(confirmed) == "300").then_some(())
    });
    relay.until_sink("rabbitmq", "down");
    assert_eq!(relay.down_entries().len(), 1, "{}", relay.log());
    // The reported reason is the current one.
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0"]);
    until("the reason to change", || {
        let down = relay.until_sink("rabbitmq", "down");
        let reason = down["reason"].as_str().unwrap();
        reason.contains("blocks publishers").then_some(())
    });
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    let queue = rabbitmq.bind_queue("unbound", "1400000001.group.*");
    relay.until_drained("rabbitmq");
    relay.until_sink("rabbitmq", "up");
    let found = rabbitmq.recalls(&queue, sent.len());
    assert_eq!(assert_kept(&sent, &found), 0);
    relay.stop();
}

#[test]
fn an_unroutable_event_becomes_a_dead_letter_if_configured() {
    let rabbitmq = RabbitMq::shared();
    let relay = rabbitmq
        .settings(Setup::new(), "unroutable")
        .set("RECALL_RABBITMQ__QUEUE", "")
        .set("RECALL_RABBITMQ__UNROUTABLE", "dead-letter")
        .start();
    relay.until_sink("rabbitmq", "up");
    // Only events of c2c conversations have a queue.
    let queue = rabbitmq.bind_queue("unroutable", "*.c2c");
    for number in 1..=50 {
        relay.recalls("a", number..=number);
        recall_c2c(&relay, number);
    }
    relay.until_drained("rabbitmq");
    let dead = rabbitmq.read("unroutable.dead", 50, TIMEOUT);
    let numbers = dead.iter().map(|dead| Recall::of(&dead.body).number);
    let numbers: BTreeSet<u64> = numbers.collect();
    assert_eq!((dead.len(), numbers), (50, (1..=50).collect()));
    for dead in &dead {
        assert_eq!(dead.header("recall_reason"), Some("unroutable"), "{dead:?}");
    }
    let expected: Vec<_> = (1..=50).map(|number| Recall::new("f:t", number)).collect();
    assert_eq!(rabbitmq.recalls(&queue, 50), expected);
    relay.stop();
}

#[test]
fn events_are_retried_while_a_queue_is_full() {
    let rabbitmq = RabbitMq::shared();
    let policy = r#"{"max-length":5,"overflow":"reject-publish"}"#;
    let of = ["limit", "^limited$", policy, "--apply-to", "queues"];
    rabbitmq.ctl(&[&["set_policy"], &of[..]].concat());
    let relay = rabbitmq.settings(Setup::new(), "limited").start();
    relay.until_sink("rabbitmq", "up");
    let sent = relay.recalls("a", 1..=40);
    relay.until_down("rabbitmq", "nack");
    // A consumer empties the queue, so that it accepts messages again.
    let found = rabbitmq.read("limited", sent.len(), 2 * TIMEOUT);
    let found: Vec<_> = found.iter().map(|it| Recall::of(&it.body)).collect();
    relay.until_drained("rabbitmq");
    relay.until_sink("rabbitmq", "up");
    assert_kept(&sent, &found);
    rabbitmq.ctl(&["clear_policy", "limit"]);
    relay.stop();
}

/// How many messages are ready in a queue.
fn ready_messages(rabbitmq: &RabbitMq, queue: &str) -> u32 {
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    rabbitmq.with_channel(async |channel| {
        let declared = channel.queue_declare(queue.into(), passive, FieldTable::default());
        declared.await.unwrap().message_count()
    })
}

/// Takes one message out of a queue.
fn take_one(rabbitmq: &RabbitMq, queue: &str) -> Recall {
    rabbitmq.with_channel(async |channel| {
        let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true });
        Recall::of(&got.await.unwrap().unwrap().data)
    })
}

/// RabbitMQ puts a message into every queue that accepts it, and nacks it if another one does not. When every refused
/// event was published again each second, the other queue had 6115 messages after 20 s.
#[test]
fn a_full_queue_does_not_fill_another_one_with_copies() {
    let rabbitmq = RabbitMq::shared();
    let name = "healthy";
    let setup = rabbitmq.settings(Setup::new(), name);
    let setup = setup.set("RECALL_DRAIN_TIMEOUT", "2s");
    let relay = setup.start();
    relay.until_sink("rabbitmq", "up");
    let full = rabbitmq.bind_queue(name, "#");
    let policy = r#"{"max-length":20,"overflow":"reject-publish"}"#;
    let of = ["full", &format!("^{full}$"), policy, "--apply-to", "queues"];
    rabbitmq.ctl(&[&["set_policy"], &of[..]].concat());
    let recall_all = |number: u64| -> Vec<Recall> {
        let groups = (1..=300).map(|group| format!("g{group}"));
        let recalls = groups.flat_map(|group| relay.recalls(&group, number..=number));
        recalls.collect()
    };
    let copies = || ready_messages(&rabbitmq, name);

    // Each of 300 events is published. Retries follow after 1, 3, 7, 15 and 31 s.
    let mut sent = recall_all(1);
    relay.until_down("rabbitmq", "nack");
    let too_many = poll(Duration::from_secs(20), || copies() > 300 + 5);
    let before = copies();
    assert!(!too_many && before >= 300, "{before} copies of 300 events");

    // The second event of a conversation is published when the first one is confirmed: 20 are, and 10 more follow.
    sent.extend(recall_all(2));
    let mut taken = Vec::new();
    for _ in 0..10 {
        taken.push(take_one(&rabbitmq, &full));
        // Besides the retry that is confirmed, two are rejected.
        let limit = before + 20 + 10 + 10 * 3;
        let too_many = poll(Duration::from_secs(1), || copies() > limit);
        assert!(!too_many, "{} copies, {before} before", copies());
    }

    // After a restart, what follows the oldest unconfirmed event is published again: at most 300 conversations and the
    // ten events that were just confirmed.
    let before = copies();
    relay.stop();
    let relay = setup.start();
    relay.until_down("rabbitmq", "nack");
    let too_many = poll(Duration::from_secs(5), || copies() > before + 300 + 10 + 5);
    assert!(!too_many, "{} copies, {before} before", copies());

    // There is capacity for all: they are confirmed within a minute.
    rabbitmq.ctl(&["clear_policy", "full"]);
    relay.until_drained("rabbitmq");
    relay.until_sink("rabbitmq", "up");
    taken.extend(rabbitmq.recalls(&full, sent.len() - taken.len()));
    let duplicates = assert_kept(&sent, &taken);
    assert!(duplicates <= 10, "{duplicates} duplicates");
    // 300 events were published once by each session, and then confirmed. The others are retries that were rejected.
    let duplicates = assert_kept(&sent, &rabbitmq.recalls(name, sent.len()));
    assert!(duplicates <= 300 + 300 + 50, "{duplicates} duplicates");
    relay.stop();
}

/// No consumer empties the queue here: only its limit changes.
#[test]
fn publishing_resumes_after_a_queue_limit_is_lifted() {
    let rabbitmq = RabbitMq::shared();
    let name = "lifted";
    let setup = rabbitmq.settings(Setup::new(), name);
    let of = format!("^{name}$");
    let relay = setup.start();
    relay.until_sink("rabbitmq", "up");
    let mut sent = Vec::new();
    for lift in ["set_policy", "clear_policy"] {
        let policy = |length: usize| {
            let policy = format!(r#"{{"max-length":{length},"overflow":"reject-publish"}}"#);
            rabbitmq.ctl(&["set_policy", "lift", &of, &policy, "--apply-to", "queues"])
        };
        policy(sent.len() + 5);
        sent.extend(relay.recalls(lift, 1..=40));
        relay.until_down("rabbitmq", "nack");
        match lift {
            "set_policy" => policy(1000),
            _ => rabbitmq.ctl(&["clear_policy", "lift"]),
        };
        relay.until_drained("rabbitmq");
        relay.until_sink("rabbitmq", "up");
    }
    let found = rabbitmq.recalls(name, sent.len());
    assert_eq!(assert_kept(&sent, &found), 0);
    relay.stop();
}

#[test]
fn nothing_times_out_while_the_broker_blocks_publishers() {
    let rabbitmq = RabbitMq::shared();
    let setup = rabbitmq.settings(Setup::new(), "blocked");
    let relay = setup.set("RECALL_RABBITMQ__CONFIRM_TIMEOUT", "1s").start();
    relay.until_sink("rabbitmq", "up");
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0"]);
    let sent = relay.recalls("a", 1..=20);
    let down = relay.until_down("rabbitmq", "blocks publishers");
    // Longer than confirm_timeout.
    let changed = poll(Duration::from_secs(3), || {
        relay.readiness()["sinks"]["rabbitmq"] != down
    });
    assert!(!changed, "{}", relay.readiness());
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    relay.until_drained("rabbitmq");
    let found = rabbitmq.recalls("blocked", sent.len());
    assert_eq!(assert_kept(&sent, &found), 0);
    relay.stop();
}

#[test]
fn a_frozen_node_is_disconnected_after_the_confirm_timeout() {
    let rabbitmq = RabbitMq::shared();
    let setup = rabbitmq.settings(Setup::new(), "frozen");
    let relay = setup.set("RECALL_RABBITMQ__CONFIRM_TIMEOUT", "2s").start();
    relay.until_sink("rabbitmq", "up");
    assert_eq!(relay.threads("lapin-io-loop"), 1);
    let acknowledged = under_load(&relay, || {
        rabbitmq.freeze();
        relay.until_down("rabbitmq", "rabbitmq.confirm_timeout");
        // The thread of the abandoned connection ends; one of the next attempt may be running.
        until("the old connection's thread to end", || {
            (relay.threads("lapin-io-loop") <= 1).then_some(())
        });
        rabbitmq.thaw();
    });
    relay.until_drained("rabbitmq");
    assert_kept(
        &acknowledged,
        &rabbitmq.recalls("frozen", acknowledged.len()),
    );
    relay.stop();
}

#[test]
fn the_next_host_is_tried_if_one_is_down() {
    let rabbitmq = RabbitMq::shared();
    let setup = rabbitmq.settings(Setup::new(), "hosts");
    let uris = format!("amqp://guest:guest@127.0.0.1:1,{}", rabbitmq.uri());
    let relay = setup.set("RECALL_RABBITMQ__URI", &uris).start();
    let sent = relay.recalls("a", 1..=1);
    relay.until_drained("rabbitmq");
    assert_eq!(rabbitmq.recalls("hosts", 1), sent);
    relay.stop();
}

/// How long an outage is watched: longer than the pauses between attempts to connect, which are at most 10 s.
const WATCHED: Duration = Duration::from_secs(12);

/// The settings of a relay that connects as a new user with these rights: configure, write, read.
fn as_user(rabbitmq: &RabbitMq, name: &str, rights: [&str; 3]) -> Setup {
    rabbitmq.ctl(&["add_user", name, "secret"]);
    set_rights(rabbitmq, name, rights);
    let uri = format!("amqp://{name}:secret@127.0.0.1:{}", rabbitmq.port());
    let setup = rabbitmq.settings(Setup::new(), name);
    setup.set("RECALL_RABBITMQ__URI", &uri)
}

fn set_rights(rabbitmq: &RabbitMq, name: &str, rights: [&str; 3]) {
    rabbitmq.ctl(&[&["set_permissions", name], &rights[..]].concat());
}

/// Runs `change`, closes all connections, and asserts that the reason becomes and stays `reason`, logged once.
#[track_caller]
fn assert_told(rabbitmq: &RabbitMq, relay: &Relay, reason: &str, change: impl FnOnce()) {
    let before = relay.down_entries().len();
    let changes = relay.log_entries("sink_still_down").len();
    change();
    rabbitmq.ctl(&["close_all_connections", "maintenance"]);
    relay.until_reason("rabbitmq", reason);
    relay.assert_reason_stays("rabbitmq", reason, WATCHED);
    assert_eq!(relay.down_entries().len(), before + 1, "{}", relay.log());
    let changes = relay.log_entries("sink_still_down").len() - changes;
    assert!(changes <= 2, "{}", relay.log());
}

#[test]
fn a_password_or_right_taken_away_while_running_is_the_reason() {
    let rabbitmq = RabbitMq::start();
    let all = [".*"; 3];
    let setup = as_user(&rabbitmq, "ann", all);
    let relay = setup.start();
    let mut sent = relay.recalls("a", 1..=1);
    relay.until_drained("rabbitmq");
    relay.until_sink("rabbitmq", "up");

    assert_told(&rabbitmq, &relay, "Login was refused", || {
        rabbitmq.ctl(&["change_password", "ann", "other"]);
    });
    let down = relay.down_entries().remove(0);
    assert!(down["reason"].to_string().contains("maintenance"), "{down}");
    sent.extend(relay.recalls("a", 2..=4));
    rabbitmq.ctl(&["change_password", "ann", "secret"]);
    relay.until_drained("rabbitmq");
    relay.until_sink("rabbitmq", "up");
    let caught_up = relay.log_entries("sink_caught_up").pop().unwrap();
    assert_eq!(caught_up["events"], 3, "{caught_up}");

    let vhost = "access to vhost '/' refused for user 'ann'";
    assert_told(&rabbitmq, &relay, vhost, || {
        rabbitmq.ctl(&["clear_permissions", "ann"]);
    });
    set_rights(&rabbitmq, "ann", all);
    relay.until_sink("rabbitmq", "up");

    let queues = ["^ann(\\.dead)?$", "^amq.default$", ".*"];
    let right = "the user lacks the right write on queue ann, or read on exchange ann";
    assert_told(&rabbitmq, &relay, right, || {
        set_rights(&rabbitmq, "ann", queues);
    });
    set_rights(&rabbitmq, "ann", all);
    relay.until_sink("rabbitmq", "up");
    let right = "the user lacks the right configure on exchange ann";
    assert_told(&rabbitmq, &relay, right, || {
        set_rights(&rabbitmq, "ann", ["^$", ".*", ".*"]);
    });
    relay.kill();
}

#[test]
fn a_missing_right_to_publish_is_named() {
    let rabbitmq = RabbitMq::start();
    rabbitmq
        .settings(Setup::new(), "bob")
        .start()
        .until_sink("rabbitmq", "up");
    let setup = as_user(&rabbitmq, "bob", ["^$", "^amq.default$", "^$"]);
    let relay = setup.set("RECALL_RABBITMQ__DECLARE", "false").start();
    relay.until_sink("rabbitmq", "up");
    let sent = relay.recalls("a", 1..=1);
    let reason = "the user lacks the right write on exchange bob";
    relay.until_reason("rabbitmq", reason);
    relay.assert_reason_stays("rabbitmq", reason, WATCHED);
    assert_eq!(relay.down_entries().len(), 1, "{}", relay.log());
    set_rights(&rabbitmq, "bob", ["^$", "^(bob|amq.default)$", "^$"]);
    relay.until_drained("rabbitmq");
    assert_eq!(rabbitmq.recalls("bob", 1), sent);
    relay.stop();
}

/// The user has only the rights that docs/reference/broker-layout-and-rights.md lists for this case.
#[test]
fn what_is_not_declared_is_checked() {
    let rabbitmq = RabbitMq::start();
    let rights = ["^$", "^(eve|amq.default)$", "^$"];
    let setup = as_user(&rabbitmq, "eve", rights).set("RECALL_RABBITMQ__DECLARE", "false");
    let relay = setup.start();
    relay.until_reason("rabbitmq", "exchange eve");
    relay.until_reason("rabbitmq", "rabbitmq.exchange");
    let mut sent = relay.recalls("a", 1..=1);
    rabbitmq.declare_exchange("eve");
    relay.until_reason("rabbitmq", "queue eve");
    relay.until_reason("rabbitmq", "rabbitmq.queue");
    assert_eq!(relay.down_entries().len(), 1, "{}", relay.log());
    let queue = rabbitmq.declare_queue("eve", "eve");
    relay.until_drained("rabbitmq");
    assert_eq!(rabbitmq.recalls(&queue, 1), sent);
    // Without the dead-letter queue, only dead letters stay in the spool.
    let missing = relay.log_entries("dead_letter_queue_missing");
    assert_eq!(missing.len(), 1, "{}", relay.log());
    let reason = missing[0]["reason"].to_string();
    assert!(reason.contains("queue eve.dead: "), "{reason}");
    assert_eq!(relay.post(&recall_query(), "{").status, 400);
    sent.extend(relay.recalls("a", 2..=2));
    relay.until_drained("rabbitmq");
    let stored = relay.log_entry("dead_letters_stored").unwrap();
    assert_eq!(stored["level"], "ERROR", "{stored}");
    relay.stop();
    assert_eq!(read_dead_letters(&setup).len(), 1);

    let relay = setup.start();
    let waiting = relay.log_entry("dead_letters_waiting").unwrap();
    assert_eq!(
        (&waiting["level"], &waiting["dead_letters"]),
        (&"WARN".into(), &1.into())
    );
    rabbitmq.declare_queue("eve", "eve.dead");
    relay.stop();
    let relay = setup.start();
    relay.until_sink("rabbitmq", "up");
    let missing = relay.log_entry("dead_letter_queue_missing");
    assert_eq!(missing, None);
    relay.stop();
}
