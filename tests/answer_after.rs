//! `answer_after = "broker"` with real brokers.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod rig;

use std::ops::RangeInclusive;
use std::thread;
use std::time::Duration;

use rig::{Broker, Kafka, RabbitMq, Recall, Relay, Setup, on_both_brokers, until};
use serde_json::Value;

/// Long enough that a working broker confirms by then, even if the machine is busy.
const DEADLINE: Duration = Duration::from_millis(1500);

fn with_broker(broker: &dyn Broker, name: &str) -> Setup {
    let setup = broker.settings(Setup::new(), name);
    waiting(setup)
}

fn waiting(setup: Setup) -> Setup {
    setup
        .set("RECALL_ANSWER_AFTER", "broker")
        .set("RECALL_ANSWER_DEADLINE", "1500ms")
}

/// The number of answers that were given after `disk` or `broker`.
fn answers(relay: &Relay, after: &str) -> u64 {
    let series = format!("recall_answers_total{{after=\"{after}\"}}");
    relay.metric(&series).parse().unwrap()
}

/// A relay for whose answers the broker confirms in time: the first confirms after a start may take longer.
fn started(setup: &Setup) -> Relay {
    let relay = setup.start();
    let mut number = 0;
    until("the broker to confirm in time", || {
        number += 1;
        relay.recalls("first", number..=number);
        (answers(&relay, "broker") > 0).then_some(())
    });
    relay
}

/// Sends these recalls; returns them, and how many were answered after the broker and after the disk.
fn answered(
    relay: &Relay,
    conversation: &str,
    numbers: RangeInclusive<u64>,
) -> (Vec<Recall>, u64, u64) {
    let before = (answers(relay, "broker"), answers(relay, "disk"));
    let sent = relay.recalls(conversation, numbers);
    let after = (answers(relay, "broker"), answers(relay, "disk"));
    (sent, after.0 - before.0, after.1 - before.1)
}

fn where_is(setup: &Setup, conversation: &str, number: u64) -> Value {
    let number = number.to_string();
    let words = [
        "where",
        "--group",
        conversation,
        "--message",
        &number,
        "--json",
    ];
    let (code, output, error) = setup.run(&words);
    assert_eq!(code, 0, "{error}");
    serde_json::from_str(&output).unwrap()
}

/// At the moment of each answer, the event is at the broker: the relay is killed and its spool deleted, and nothing is
/// missing.
fn an_answer_waits_until_the_broker_has_the_event(broker: &mut dyn Broker) {
    let setup = with_broker(broker, "awaited");
    let relay = started(&setup);
    let (sent, after_broker, after_disk) = answered(&relay, "a", 1..=50);
    assert_eq!((after_broker, after_disk), (50, 0));
    relay.kill();
    std::fs::remove_dir_all(setup.spool().parent().unwrap()).unwrap();
    assert_eq!(of(broker, "awaited", "a", 50), sent);
}

/// The recalls of a conversation that a subscriber receives.
fn of(broker: &dyn Broker, name: &str, conversation: &str, at_least: usize) -> Vec<Recall> {
    let mut found = broker.recalls(name, at_least + 1);
    found.retain(|recall| recall.group == conversation);
    found
}

fn a_broker_that_does_not_answer_delays_a_few_answers_and_refuses_none(broker: &mut dyn Broker) {
    let sink = broker.sink();
    let setup = with_broker(broker, "frozen");
    let relay = started(&setup);
    relay.recalls("a", 1..=5);
    relay.until_drained(sink);
    broker.freeze();
    for number in 6..=8 {
        let answer = relay.recall("a", number);
        assert!(answer.is_ok() && answer.took >= DEADLINE, "{answer:?}");
    }
    // The breaker is open.
    let before = answers(&relay, "disk");
    let later: Vec<_> = (9..=40).map(|number| relay.recall("a", number)).collect();
    assert!(later.iter().all(rig::Answer::is_ok), "{later:?}");
    let waited = later
        .iter()
        .filter(|answer| answer.took >= DEADLINE)
        .count();
    assert!(waited < 3, "{later:?}");
    assert_eq!(answers(&relay, "disk") - before, 32);
    assert!(relay.log_entry("answers_after_disk").is_some());
    assert_eq!(relay.metric("recall_at_risk_events"), "35.0");
    assert_eq!(relay.readiness()["spool"]["at_risk_events"], 35);
    assert_eq!(where_is(&setup, "a", 5)["at_risk"], false);
    assert_eq!(where_is(&setup, "a", 40)["at_risk"], true);
    broker.thaw();
    // A later event than those that wait is the probe.
    let mut number = 40;
    until("answers to wait again", || {
        number += 1;
        assert!(relay.recall("a", number).is_ok());
        relay.log_entry("answers_wait_for_broker")
    });
    let before = answers(&relay, "broker");
    until("an answer after the broker", || {
        number += 1;
        relay.recalls("a", number..=number);
        (answers(&relay, "broker") > before).then_some(())
    });
    relay.until_drained(sink);
    assert_eq!(relay.metric("recall_at_risk_events"), "0.0");
    assert_eq!(where_is(&setup, "a", 40)["at_risk"], false);
    relay.stop();
}

/// Otherwise the vendor would have an OK although no broker has the event.
fn a_repeated_callback_waits_as_the_first_does(broker: &mut dyn Broker) {
    let sink = broker.sink();
    let setup = with_broker(broker, "repeated");
    let relay = started(&setup);
    relay.recalls("a", 1..=5);
    relay.until_drained(sink);
    broker.freeze();
    let took = thread::scope(|scope| {
        let both = [(); 2].map(|()| {
            scope.spawn(|| {
                let answer = relay.recall("a", 6);
                assert!(answer.is_ok());
                answer.took
            })
        });
        both.map(|one| one.join().unwrap())
    });
    broker.thaw();
    assert!(took.iter().all(|took| *took >= DEADLINE), "{took:?}");
    assert_eq!(relay.outcome_count("repeated"), 1);
    relay.until_drained(sink);
    // What was confirmed long ago needs no wait, even after a restart.
    relay.stop();
    let relay = started(&setup);
    broker.freeze();
    let (_, after_broker, after_disk) = answered(&relay, "a", 3..=3);
    assert_eq!((after_broker, after_disk), (1, 0));
    broker.thaw();
    relay.stop();
}

on_both_brokers! {
    an_answer_waits_until_the_broker_has_the_event,
    a_broker_that_does_not_answer_delays_a_few_answers_and_refuses_none,
    a_repeated_callback_waits_as_the_first_does,
}

#[test]
fn with_exactly_once_an_answer_waits_for_the_transaction() {
    let kafka = Kafka::shared();
    let setup = with_broker(&*kafka, "committed").set("RECALL_KAFKA__EXACTLY_ONCE", "true");
    let relay = started(&setup);
    let (sent, after_broker, after_disk) = answered(&relay, "a", 1..=20);
    assert_eq!((after_broker, after_disk), (20, 0));
    relay.kill();
    assert_eq!(of(&*kafka, "committed", "a", 20), sent);
}

/// `broker` means every configured broker; an event is at risk until one of them has it.
#[test]
fn with_two_brokers_an_answer_waits_for_both() {
    let (kafka, rabbitmq) = (Kafka::shared(), RabbitMq::start());
    let setup = kafka.settings(Setup::new(), "both");
    let setup = waiting(rabbitmq.settings(setup, "both"));
    let relay = started(&setup);
    let (_, after_broker, after_disk) = answered(&relay, "a", 1..=5);
    assert_eq!((after_broker, after_disk), (5, 0));
    rabbitmq.freeze();
    let (_, after_broker, after_disk) = answered(&relay, "a", 6..=6);
    assert_eq!((after_broker, after_disk), (0, 1));
    relay.until_drained("kafka");
    assert_eq!(relay.readiness()["sinks"]["rabbitmq"]["lag"], 1);
    assert_eq!(relay.metric("recall_at_risk_events"), "0.0");
    rabbitmq.thaw();
    relay.until_drained("rabbitmq");
    relay.stop();
}

/// A client that has given up, as the vendor does after 2 s, leaves nothing behind; the event is published.
#[test]
fn clients_that_disconnect_while_they_wait_do_no_harm() {
    let kafka = Kafka::shared();
    let setup = with_broker(&*kafka, "abandoned");
    let relay = started(&setup);
    relay.until_drained("kafka");
    let first = relay.readiness()["spool"]["last_seq"].as_u64().unwrap();
    kafka.freeze();
    for number in 2..=20 {
        let mut connection = rig::Connection::open(relay.callbacks).unwrap();
        let target = format!("/?{}", rig::recall_query());
        let body = rig::recall("a", number);
        let bytes = rig::encode("POST", &target, body.as_ref());
        connection.send(&bytes).unwrap();
        until("the event to be on disk", || {
            (relay.readiness()["spool"]["last_seq"] == first + number - 1).then_some(())
        });
    }
    // They are not lost, so nobody must be alarmed.
    until("the disconnects to be noticed", || {
        (relay.outcome_count("accepted") == first + 19).then_some(())
    });
    assert_eq!(relay.outcome_count("abandoned"), 0);
    assert!(relay.log_entry("recalls_not_accepted").is_none());
    kafka.thaw();
    relay.until_drained("kafka");
    assert_eq!(of(&*kafka, "abandoned", "a", 19).len(), 19);
    relay.stop();
}

#[test]
fn without_a_broker_there_is_nothing_at_risk() {
    let setup = Setup::new();
    let relay = setup.start();
    relay.recalls("a", 1..=3);
    assert_eq!(answers(&relay, "disk"), 3);
    for absent in ["at_risk", "after=\"broker\""] {
        assert!(!relay.admin("/metrics").text().contains(absent), "{absent}");
    }
    assert!(relay.readiness()["spool"].get("at_risk_events").is_none());
    assert!(where_is(&setup, "a", 3).get("at_risk").is_none());
    relay.stop();
}
