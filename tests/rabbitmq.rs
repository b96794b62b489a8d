//! The promises, on a real RabbitMQ.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod rig;

use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rig::rabbitmq::Delivery;
use rig::{
    RabbitMq, Recall, Setup, assert_kept, kill_again_and_again, large_recall, recall_query,
    under_load, until,
};
use serde_json::Value;

/// One node for all tests of this file, one test at a time: some stop it and start it again.
fn rabbitmq() -> MutexGuard<'static, RabbitMq> {
    static RABBITMQ: LazyLock<Mutex<RabbitMq>> = LazyLock::new(|| Mutex::new(RabbitMq::start()));
    RABBITMQ.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A relay's settings for an exchange and queues of the test's own, and their name.
fn setup(rabbitmq: &RabbitMq, test: &str) -> (Setup, String) {
    let setup = Setup::new()
        .set("RECALL_RABBITMQ__URI", &rabbitmq.uri())
        .set("RECALL_RABBITMQ__EXCHANGE", test)
        .set("RECALL_RABBITMQ__QUEUE", test)
        .set(
            "RECALL_RABBITMQ__DEAD_LETTER_QUEUE",
            &format!("{test}.dead"),
        );
    (setup, test.to_owned())
}

const TIMEOUT: Duration = Duration::from_secs(60);

fn recalls(deliveries: &[Delivery]) -> Vec<Recall> {
    deliveries
        .iter()
        .map(|delivery| Recall::of(&delivery.body))
        .collect()
}

#[test]
fn every_event_arrives_once_with_its_properties_and_in_order() {
    let rabbitmq = rabbitmq();
    let (setup, name) = setup(&rabbitmq, "once");
    let relay = setup.start();
    let mut sent = Vec::new();
    for number in 1..=60 {
        for group in ["a", "b", "@TGS#c d"] {
            assert!(relay.recall(group, number).is_ok());
            sent.push(Recall::new(group, number));
        }
    }
    relay.until_drained("rabbitmq");
    let deliveries = rabbitmq.read(&name, sent.len(), TIMEOUT);
    assert_eq!(deliveries.len(), sent.len());
    assert_eq!(assert_kept(&sent, &recalls(&deliveries)), 0);
    for delivery in &deliveries {
        let event: Value = serde_json::from_slice(&delivery.body).unwrap();
        assert_eq!(
            (delivery.exchange.as_str(), delivery.routing_key.as_str()),
            ("once", "1400000001.group.Public")
        );
        assert_eq!(delivery.message_id.as_deref(), event["id"].as_str());
        assert_eq!(
            delivery.kind.as_deref(),
            Some("com.tencent.im.group.message.recalled")
        );
        assert_eq!(
            delivery.content_type.as_deref(),
            Some("application/cloudevents+json; charset=UTF-8")
        );
        assert_eq!(
            (delivery.persistent, delivery.timestamp),
            (true, Some(1_670_574_414))
        );
        assert_eq!(delivery.app_id.as_deref(), Some("recall-relay"));
    }
    relay.stop();
}

#[test]
fn a_node_that_is_stopped_and_started_loses_nothing() {
    let mut rabbitmq = rabbitmq();
    let (setup, name) = setup(&rabbitmq, "stopped");
    let relay = setup.start();
    relay.until_sink("rabbitmq", "up");
    let acknowledged = under_load(&relay, || {
        rabbitmq.stop();
        relay.until_sink("rabbitmq", "down");
        assert_eq!(relay.admin("/readyz").status, 200);
        rabbitmq.resume();
    });
    relay.until_drained("rabbitmq");
    relay.until_sink("rabbitmq", "up");
    let found = recalls(&rabbitmq.read(&name, acknowledged.len(), TIMEOUT));
    assert_kept(&acknowledged, &found);
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
fn a_node_that_is_killed_loses_nothing() {
    let mut rabbitmq = rabbitmq();
    let (setup, name) = setup(&rabbitmq, "killed");
    let relay = setup.start();
    relay.until_sink("rabbitmq", "up");
    let acknowledged = under_load(&relay, || {
        rabbitmq.kill();
        rabbitmq.resume();
    });
    relay.until_drained("rabbitmq");
    let found = recalls(&rabbitmq.read(&name, acknowledged.len(), TIMEOUT));
    assert_kept(&acknowledged, &found);
    relay.stop();
}

#[test]
fn a_node_that_is_absent_at_the_start_is_waited_for() {
    let mut rabbitmq = rabbitmq();
    rabbitmq.stop();
    let (setup, name) = setup(&rabbitmq, "absent");
    let relay = setup.start();
    relay.until_sink("rabbitmq", "down");
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
    rabbitmq.resume();
    relay.until_drained("rabbitmq");
    relay.until_sink("rabbitmq", "up");
    acknowledged.extend(relay.recalls("one by one", 101..=200));
    relay.until_drained("rabbitmq");
    let found = recalls(&rabbitmq.read(&name, acknowledged.len(), TIMEOUT));
    assert_eq!(assert_kept(&acknowledged, &found), 0);
    relay.stop();
}

#[test]
fn every_acknowledged_callback_is_found_after_kill_9_of_the_relay() {
    let rabbitmq = rabbitmq();
    let (setup, name) = setup(&rabbitmq, "relay-killed");
    let acknowledged = kill_again_and_again(&setup, "rabbitmq", 4);
    let found = recalls(&rabbitmq.read(&name, acknowledged.len(), TIMEOUT));
    let repeated = assert_kept(&acknowledged, &found);
    println!(
        "{} acknowledged, {repeated} of them published again",
        acknowledged.len()
    );
}

fn c2c_recall(number: u64) -> String {
    format!(
        r#"{{"CallbackCommand":"C2C.CallbackAfterMsgWithDraw","From_Account":"f","To_Account":"t","MsgKey":"{number}_1_1557481126"}}"#
    )
}

#[test]
fn an_event_that_no_queue_takes_is_held_until_one_is_bound() {
    let rabbitmq = rabbitmq();
    let (setup, name) = setup(&rabbitmq, "unbound");
    let relay = setup.set("RECALL_RABBITMQ__QUEUE", "").start();
    relay.until_sink("rabbitmq", "up");
    rabbitmq.bind_queue(&name, "*.c2c");
    let sent: Vec<Recall> = (1..=30)
        .map(|number| Recall::new(if number % 2 == 0 { "a" } else { "b" }, number))
        .collect();
    for recall in &sent {
        assert!(relay.recall(&recall.group, recall.number).is_ok());
    }
    let down = relay.until_sink("rabbitmq", "down");
    assert!(
        down["reason"]
            .as_str()
            .unwrap()
            .contains("no queue takes events"),
        "{down}"
    );
    // Others go through meanwhile, and the log does not follow each of them.
    for number in 1..=300 {
        assert!(
            relay
                .post("SdkAppid=1400000001", c2c_recall(number))
                .is_ok()
        );
    }
    let confirmed = r#"recall_sink_confirmed_events_total{sink="rabbitmq"}"#;
    until("the others", || {
        (relay.metric(confirmed) == "300").then_some(())
    });
    relay.until_sink("rabbitmq", "down");
    assert_eq!(
        relay
            .log_entries("sink is down; events stay in the spool")
            .len(),
        1,
        "{}",
        relay.log()
    );
    // What is said is what holds it up now.
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0"]);
    until("the other reason", || {
        let down = relay.until_sink("rabbitmq", "down");
        let reason = down["reason"].as_str().unwrap();
        reason.contains("blocks publishers").then_some(())
    });
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    let queue = rabbitmq.bind_queue(&name, "1400000001.group.*");
    relay.until_drained("rabbitmq");
    relay.until_sink("rabbitmq", "up");
    let found = recalls(&rabbitmq.read(&queue, sent.len(), TIMEOUT));
    assert_eq!(assert_kept(&sent, &found), 0);
    relay.stop();
}

/// Once our own queue was deleted under way, every event was returned and held, until somebody else
/// declared the queue or started the relay again: nothing but a new session declares it.
#[test]
fn our_queue_that_is_deleted_is_declared_again() {
    let rabbitmq = rabbitmq();
    let (setup, name) = setup(&rabbitmq, "deleted");
    let relay = setup.start();
    relay.until_sink("rabbitmq", "up");
    rabbitmq.with_channel(async |channel| {
        let options = lapin::options::QueueDeleteOptions::default();
        channel
            .queue_delete(name.as_str().into(), options)
            .await
            .unwrap();
    });
    for number in 1..=3 {
        assert!(relay.recall("a", number).is_ok());
    }
    relay.until_drained("rabbitmq");
    let found = recalls(&rabbitmq.read(&name, 3, TIMEOUT));
    assert_eq!(found, [1, 2, 3].map(|number| Recall::new("a", number)));
    relay.until_sink("rabbitmq", "up");
    relay.stop();
}

#[test]
fn an_event_that_no_queue_takes_goes_to_the_dead_letters_where_that_is_wanted() {
    let rabbitmq = rabbitmq();
    let (setup, name) = setup(&rabbitmq, "unroutable");
    let relay = setup
        .set("RECALL_RABBITMQ__QUEUE", "")
        .set("RECALL_RABBITMQ__UNROUTABLE", "dead-letter")
        .start();
    relay.until_sink("rabbitmq", "up");
    // Only events of c2c conversations have a queue.
    let queue = rabbitmq.bind_queue(&name, "*.c2c");
    for number in 1..=50 {
        assert!(relay.recall("a", number).is_ok());
        assert!(
            relay
                .post("SdkAppid=1400000001", c2c_recall(number))
                .is_ok()
        );
    }
    relay.until_drained("rabbitmq");
    let dead = rabbitmq.read("unroutable.dead", 50, TIMEOUT);
    let numbers: BTreeSet<u64> = recalls(&dead)
        .into_iter()
        .map(|recall| recall.number)
        .collect();
    assert_eq!((dead.len(), numbers), (50, (1..=50).collect()));
    assert!(
        dead[0]
            .headers
            .contains(&("recall_reason".to_owned(), "unroutable".to_owned())),
        "{dead:?}"
    );
    let found = recalls(&rabbitmq.read(&queue, 50, TIMEOUT));
    assert_eq!(
        found,
        (1..=50)
            .map(|number| Recall::new("f:t", number))
            .collect::<Vec<_>>()
    );
    relay.stop();
}

#[test]
fn a_message_that_is_too_large_goes_to_the_dead_letters_or_stays() {
    // The limit holds for the dead letters too: the spool keeps it.
    let mut rabbitmq = RabbitMq::start_with(&["max_message_size = 4000"]);
    let (setup, name) = setup(&rabbitmq, "too-large");
    let relay = setup.start();
    relay.until_sink("rabbitmq", "up");
    // With a backlog of many conversations it is one of many in its round.
    rabbitmq.stop();
    let mut sent = Vec::new();
    for number in 1..=600 {
        let group = format!("group-{}", number % 300);
        assert!(relay.recall(&group, number).is_ok());
        sent.push(Recall::new(&group, number));
        if number == 200 {
            assert!(
                relay
                    .post(&recall_query(), large_recall("large", 20_000))
                    .is_ok()
            );
        }
    }
    rabbitmq.resume();
    relay.until_drained("rabbitmq");
    let found = recalls(&rabbitmq.read(&name, sent.len(), TIMEOUT));
    assert_kept(&sent, &found);
    relay.stop();
    let spool = rusqlite::Connection::open(setup.spool()).unwrap();
    let kept: (String, u64) = spool
        .query_row(
            "SELECT reason, length(body) FROM dead_letters WHERE sink = 'rabbitmq'",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    assert!(kept.0 == "too_large" && kept.1 > 4000, "{kept:?}");
}

#[test]
fn a_queue_at_its_limit_is_waited_for() {
    let rabbitmq = rabbitmq();
    let policy = r#"{"max-length":5,"overflow":"reject-publish"}"#;
    rabbitmq.ctl(&[
        "set_policy",
        "limit",
        "^limited$",
        policy,
        "--apply-to",
        "queues",
    ]);
    let (setup, name) = setup(&rabbitmq, "limited");
    let relay = setup.start();
    relay.until_sink("rabbitmq", "up");
    let sent: Vec<Recall> = (1..=40).map(|number| Recall::new("a", number)).collect();
    for recall in &sent {
        assert!(relay.recall("a", recall.number).is_ok());
    }
    let down = relay.until_sink("rabbitmq", "down");
    assert!(down["reason"].as_str().unwrap().contains("nack"), "{down}");
    // A subscriber comes, and the queue has room again and again.
    let found = recalls(&rabbitmq.read(&name, sent.len(), 2 * TIMEOUT));
    relay.until_drained("rabbitmq");
    relay.until_sink("rabbitmq", "up");
    assert_kept(&sent, &found);
    rabbitmq.ctl(&["clear_policy", "limit"]);
    relay.stop();
}

/// Nobody reads here: only the limit goes.
#[test]
fn a_queue_whose_limit_is_lifted_takes_events_again() {
    let rabbitmq = rabbitmq();
    let (setup, name) = setup(&rabbitmq, "lifted");
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
        for number in 1..=40 {
            assert!(relay.recall(lift, number).is_ok());
            sent.push(Recall::new(lift, number));
        }
        let down = relay.until_sink("rabbitmq", "down");
        assert!(down["reason"].as_str().unwrap().contains("nack"), "{down}");
        match lift {
            "set_policy" => policy(1000),
            _ => rabbitmq.ctl(&["clear_policy", "lift"]),
        };
        relay.until_drained("rabbitmq");
        relay.until_sink("rabbitmq", "up");
    }
    let found = recalls(&rabbitmq.read(&name, sent.len(), TIMEOUT));
    assert_eq!(assert_kept(&sent, &found), 0);
    relay.stop();
}

#[test]
fn while_the_broker_blocks_publishers_nothing_times_out() {
    let rabbitmq = rabbitmq();
    let (setup, name) = setup(&rabbitmq, "blocked");
    let relay = setup.set("RECALL_RABBITMQ__CONFIRM_TIMEOUT", "1s").start();
    relay.until_sink("rabbitmq", "up");
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0"]);
    let sent: Vec<Recall> = (1..=20).map(|number| Recall::new("a", number)).collect();
    for recall in &sent {
        assert!(relay.recall("a", recall.number).is_ok());
    }
    let down = relay.until_sink("rabbitmq", "down");
    assert!(
        down["reason"]
            .as_str()
            .unwrap()
            .contains("blocks publishers"),
        "{down}"
    );
    std::thread::park_timeout(Duration::from_secs(3));
    assert_eq!(
        relay.until_sink("rabbitmq", "down"),
        down,
        "longer than confirm_timeout"
    );
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    relay.until_drained("rabbitmq");
    let found = recalls(&rabbitmq.read(&name, sent.len(), TIMEOUT));
    assert_eq!(assert_kept(&sent, &found), 0);
    relay.stop();
}

#[test]
fn a_frozen_node_is_given_up_after_the_confirm_timeout() {
    let rabbitmq = rabbitmq();
    let (setup, name) = setup(&rabbitmq, "frozen");
    let relay = setup.set("RECALL_RABBITMQ__CONFIRM_TIMEOUT", "2s").start();
    relay.until_sink("rabbitmq", "up");
    let acknowledged = under_load(&relay, || {
        rabbitmq.freeze();
        let down = relay.until_sink("rabbitmq", "down");
        assert!(
            down["reason"]
                .as_str()
                .unwrap()
                .contains("rabbitmq.confirm_timeout"),
            "{down}"
        );
        // Of the connection that was given up nothing is left, only that of the next attempt.
        until("the old connection's thread to end", || {
            (relay.threads("lapin-io-loop") <= 1).then_some(())
        });
        rabbitmq.thaw();
    });
    relay.until_drained("rabbitmq");
    let found = recalls(&rabbitmq.read(&name, acknowledged.len(), TIMEOUT));
    assert_kept(&acknowledged, &found);
    relay.stop();
}

#[test]
fn several_hosts_are_tried_in_turn() {
    let rabbitmq = rabbitmq();
    let (setup, name) = setup(&rabbitmq, "hosts");
    let uris = format!("amqp://guest:guest@127.0.0.1:1,{}", rabbitmq.uri());
    let relay = setup.set("RECALL_RABBITMQ__URI", &uris).start();
    assert!(relay.recall("a", 1).is_ok());
    relay.until_drained("rabbitmq");
    assert_eq!(
        recalls(&rabbitmq.read(&name, 1, TIMEOUT)),
        [Recall::new("a", 1)]
    );
    relay.stop();
}

#[test]
fn a_callback_that_is_not_understood_goes_to_the_dead_letters() {
    let rabbitmq = rabbitmq();
    let (setup, name) = setup(&rabbitmq, "rejected");
    let relay = setup.start();
    assert_eq!(relay.post(&recall_query(), "{").status, 400);
    assert!(relay.recall("a", 1).is_ok());
    relay.until_drained("rabbitmq");
    let dead = rabbitmq.read("rejected.dead", 1, TIMEOUT);
    assert_eq!(dead.len(), 1);
    assert_eq!(
        dead[0].kind.as_deref(),
        Some("com.tencent.im.callback.rejected")
    );
    assert_eq!(
        recalls(&rabbitmq.read(&name, 1, TIMEOUT)),
        [Recall::new("a", 1)]
    );
    relay.stop();
}

#[test]
fn dead_letters_that_the_user_may_not_publish_do_not_stop_the_events() {
    let rabbitmq = rabbitmq();
    let (setup, queue) = setup(&rabbitmq, "no-default-exchange");
    rabbitmq.ctl(&["add_user", "limited", "limited"]);
    // Everything but the default exchange, which such patterns are matched to as amq.default.
    let ours = "^no-default-exchange.*$";
    rabbitmq.ctl(&["set_permissions", "limited", ours, ours, ours]);
    let uri = rabbitmq.uri().replace("guest:guest@", "limited:limited@");
    assert!(uri.contains("limited:limited@"), "{uri}");
    let setup = setup.set("RECALL_RABBITMQ__URI", &uri);
    let relay = setup.start();
    relay.until_sink("rabbitmq", "up");
    for number in 1..=10 {
        assert!(relay.recall("a", number).is_ok());
    }
    assert_eq!(relay.post(&recall_query(), "{").status, 400);
    for number in 11..=20 {
        assert!(relay.recall("a", number).is_ok());
    }
    relay.until_drained("rabbitmq");
    let found = recalls(&rabbitmq.read(&queue, 20, TIMEOUT));
    let sent: Vec<Recall> = (1..=20).map(|number| Recall::new("a", number)).collect();
    assert_kept(&sent, &found);
    let refused = relay.metric(r#"recall_sink_refused_events_total{sink="rabbitmq"}"#);
    assert_eq!(refused, "1", "{}", relay.log());
    relay.stop();
    let spool = rusqlite::Connection::open(setup.spool()).unwrap();
    let kept: Vec<(String, String)> = spool
        .prepare("SELECT reason, detail FROM dead_letters WHERE sink = 'rabbitmq'")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(kept[0].0, "dead_letter_queue");
    assert!(kept[0].1.contains("ACCESS_REFUSED"), "{kept:?}");
}
