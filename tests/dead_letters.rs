//! `recall-relay spool dead-letters` with real brokers and a running relay.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod rig;

use std::process::{Child, Output, Stdio};
use std::time::Duration;

use rig::{
    Broker, Faults, Kafka, RabbitMq, Recall, Relay, Setup, assert_kept, large_recall,
    on_both_brokers, poll, read_dead_letters, recall_query, until,
};
use serde_json::Value;

on_both_brokers! {
    a_retry_publishes_those_named_or_all,
    what_is_refused_again_stays,
    a_retry_continues_after_the_broker_was_killed,
    killing_the_relay_in_a_retry_loses_nothing,
    killing_the_command_ends_the_retry,
    those_dropped_are_named_and_gone,
}

const ALL: &str = "--all";

/// A relay whose spool keeps this many dead letters, rejected callbacks that it may not publish.
fn with_dead_letters(broker: &dyn Broker, name: &str, count: usize) -> (Setup, Relay) {
    let (setup, ..) = broker.settings_without_dead_letters(Setup::new(), name);
    let relay = setup.start();
    relay.until_sink(broker.sink(), "up");
    for number in 1..=count {
        let answer = relay.post(&recall_query(), format!("{{{number}"));
        assert_eq!(answer.status, 400);
    }
    relay.recalls("a", 1..=3);
    relay.until_drained(broker.sink());
    assert_eq!(read_dead_letters(&setup).len(), count);
    (setup, relay)
}

/// Runs `spool dead-letters`; returns its exit code, stdout and stderr.
fn dead_letters(setup: &Setup, arguments: &[&str]) -> (i32, String, String) {
    setup.run(&[&["spool", "dead-letters"], arguments].concat())
}

fn spawn(setup: &Setup, arguments: &[&str]) -> Child {
    let mut command = setup.command(&[&["spool", "dead-letters"], arguments].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Starts to publish all again, and waits until the relay has begun.
fn start_retry(setup: &Setup, relay: &Relay) -> Child {
    let command = spawn(setup, &["retry", ALL]);
    until("the retry to start", || relay.log_entry("retry_started"));
    command
}

#[track_caller]
fn assert_published(outcome: &(i32, String, String), count: usize) {
    let told = format!("{count} dead letters were published\n");
    assert_eq!(outcome, &(0, String::new(), told));
}

#[track_caller]
fn assert_done(output: &Output, text: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.contains(text), "{error}");
}

/// The ids that `list` prints.
fn listed(setup: &Setup) -> Vec<String> {
    let (code, lines, error) = dead_letters(setup, &["list", "--json"]);
    assert_eq!(code, 0, "{error}");
    let id = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["event"]["id"].as_str().unwrap().to_owned()
    };
    lines.lines().map(id).collect()
}

fn a_retry_publishes_those_named_or_all(broker: &mut impl Broker) {
    let (setup, relay) = with_dead_letters(broker, "retried", 10);
    let ids = listed(&setup);
    broker.allow_dead_letters("retried");
    assert_published(&dead_letters(&setup, &["retry", &ids[3], &ids[1]]), 2);
    let mut left = ids.clone();
    left.retain(|id| ![&ids[1], &ids[3]].contains(&id));
    assert_eq!(listed(&setup), left);
    assert_published(&dead_letters(&setup, &["retry", ALL]), 8);
    assert!(listed(&setup).is_empty());
    let expected = [&[ids[1].clone(), ids[3].clone()], &left[..]].concat();
    let mut found = broker.dead_letters("retried", 10);
    // Two partitions of Kafka keep no order between them.
    found.sort_by_key(|dead| expected.iter().position(|id| Some(id) == dead.id.as_ref()));
    let found: Vec<_> = found.into_iter().map(|dead| dead.id.unwrap()).collect();
    assert_eq!(found, expected);
    let (code, _, told) = dead_letters(&setup, &["retry", ALL]);
    assert_eq!(code, 0);
    assert_eq!(told, "the spool keeps no such dead letter\n");
    let (code, _, error) = dead_letters(&setup, &["retry", &ids[1]]);
    assert_eq!(code, 1);
    assert!(error.contains("spool dead-letters list"), "{error}");
    let sent = relay.recalls("a", 4..=6);
    relay.until_drained(broker.sink());
    let found = broker.recalls("retried", 6);
    // Events that were in flight when the first dead letter was refused may have been published twice.
    assert_kept(&sent, &found);
    assert_eq!(found[found.len() - 3..], sent);
    relay.stop();
}

fn what_is_refused_again_stays(broker: &mut impl Broker) {
    let (setup, relay) = with_dead_letters(broker, "refused-again", 3);
    let before = listed(&setup);
    let (code, _, error) = dead_letters(&setup, &["retry", ALL]);
    assert_eq!(code, 1);
    assert!(error.contains("3 events were refused again"), "{error}");
    assert_eq!(listed(&setup), before);
    relay.stop();
}

fn a_retry_continues_after_the_broker_was_killed(broker: &mut impl Broker) {
    let (setup, relay) = with_dead_letters(broker, "broker-killed", 10);
    broker.allow_dead_letters("broker-killed");
    broker.kill();
    let command = spawn(&setup, &["retry", ALL]);
    relay.until_sink(broker.sink(), "down");
    broker.resume();
    assert_done(
        &command.wait_with_output().unwrap(),
        "10 dead letters were published",
    );
    assert!(listed(&setup).is_empty());
    broker.dead_letters("broker-killed", 10);
    relay.stop();
}

/// The relay ends before it knows what the broker has confirmed: the spool still keeps them all.
fn killing_the_relay_in_a_retry_loses_nothing(broker: &mut impl Broker) {
    let (setup, relay) = with_dead_letters(broker, "relay-killed", 10);
    let ids = listed(&setup);
    broker.allow_dead_letters("relay-killed");
    broker.freeze();
    let command = start_retry(&setup, &relay);
    relay.kill();
    let output = command.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("0 of 10 dead letters"), "{error}");
    broker.thaw();
    let relay = setup.start();
    assert_eq!(listed(&setup), ids);
    relay.until_sink(broker.sink(), "up");
    assert_published(&dead_letters(&setup, &["retry", ALL]), 10);
    assert!(listed(&setup).is_empty());
    let found = broker.dead_letters("relay-killed", 10);
    for id in ids {
        assert!(found.iter().any(|dead| dead.id.as_ref() == Some(&id)));
    }
    relay.stop();
}

fn killing_the_command_ends_the_retry(broker: &mut impl Broker) {
    let (setup, relay) = with_dead_letters(broker, "command-killed", 10);
    let ids = listed(&setup);
    broker.allow_dead_letters("command-killed");
    broker.freeze();
    let mut command = start_retry(&setup, &relay);
    command.kill().unwrap();
    command.wait().unwrap();
    until("the end of the retry", || relay.log_entry("retry_stopped"));
    broker.thaw();
    relay.recalls("a", 4..=6);
    relay.until_drained(broker.sink());
    // Those that were sent when it ended may be confirmed or not: the spool keeps what is not.
    let (code, _, error) = dead_letters(&setup, &["retry", ALL]);
    assert_eq!(code, 0, "{error}");
    let found = broker.dead_letters("command-killed", 10);
    for id in ids {
        assert!(found.iter().any(|dead| dead.id.as_ref() == Some(&id)));
    }
    relay.stop();
}

fn those_dropped_are_named_and_gone(broker: &mut impl Broker) {
    let (setup, relay) = with_dead_letters(broker, "dropped", 5);
    let ids = listed(&setup);
    // Nobody can be asked.
    let (code, _, error) = dead_letters(&setup, &["drop", ALL]);
    assert_eq!(code, 2);
    assert!(error.contains("--yes"), "{error}");
    assert_eq!(listed(&setup), ids);
    let (code, output, error) = dead_letters(&setup, &["drop", "--yes", &ids[0], &ids[4]]);
    assert_eq!((code, error.as_str()), (0, "2 dead letters were deleted\n"));
    let names = |id: &String| output.contains(id.as_str());
    assert!(names(&ids[0]) && names(&ids[4]) && !names(&ids[1]));
    assert_eq!(listed(&setup), ids[1..4]);
    let dropped = relay.log_entry("dead_letters_dropped").unwrap();
    assert_eq!(dropped["events"], 2, "{dropped}");
    relay.stop();
    // Without a relay, the command works on the file.
    let (code, _, error) = dead_letters(&setup, &["drop", "--yes", &ids[1]]);
    assert_eq!((code, error.as_str()), (0, "1 dead letters were deleted\n"));
    let relay = setup.start();
    assert_eq!(listed(&setup), ids[2..4]);
    relay.stop();
}

/// Either all are deleted or none, and the spool is whole.
fn assert_dropped_or_not(setup: &Setup, sink: &str) {
    let relay = setup.start();
    assert_eq!(relay.readiness()["spool"]["lost"], 0);
    let left = listed(setup).len();
    assert!([0, 10].contains(&left), "{left}");
    relay.recalls("a", 4..=6);
    relay.until_drained(sink);
    relay.stop();
}

fn is_waiting(command: &mut Child) -> bool {
    !poll(Duration::from_millis(500), || {
        command.try_wait().unwrap().is_some()
    })
}

#[test]
fn killing_the_relay_while_it_deletes_damages_nothing() {
    let kafka = Kafka::shared();
    let (setup, relay) = with_dead_letters(&*kafka, "drop-killed", 10);
    relay.stop();
    let faults = Faults::new();
    let relay = setup.with_faults(&faults).start();
    relay.until_sink("kafka", "up");
    faults.hang_syncs();
    let mut command = spawn(&setup, &["drop", "--yes", ALL]);
    assert!(is_waiting(&mut command));
    relay.kill();
    let output = command.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("0 of 10 dead letters"), "{error}");
    assert_dropped_or_not(&setup, "kafka");
}

#[test]
fn killing_the_command_while_it_deletes_damages_nothing() {
    let kafka = Kafka::shared();
    let (setup, relay) = with_dead_letters(&*kafka, "drop-offline-killed", 10);
    relay.stop();
    let faults = Faults::new();
    faults.hang_syncs();
    let mut command = spawn(&setup.with_faults(&faults), &["drop", "--yes", ALL]);
    assert!(is_waiting(&mut command));
    command.kill().unwrap();
    command.wait().unwrap();
    assert_dropped_or_not(&setup, "kafka");
}

fn numbers(recalls: &[Recall]) -> Vec<u64> {
    recalls.iter().map(|recall| recall.number).collect()
}

/// An event that was too large, with transactions. It is published once and the others are not published again,
/// although the relay is killed in a retry and has lost its cursor: the position that the cluster keeps has not moved.
#[test]
fn a_retry_with_exactly_once_publishes_nothing_else_again() {
    let kafka = Kafka::shared();
    let small = [("max.message.bytes", "4000")];
    kafka.create_topic("once", 2, &small);
    kafka.create_topic("once.dead", 2, &small);
    let setup = kafka
        .settings(Setup::new(), "once")
        .set("RECALL_KAFKA__EXACTLY_ONCE", "true");
    let relay = setup.start();
    relay.recalls("a", 1..=5);
    let answer = relay.post(&recall_query(), large_recall("b", 20_000));
    assert!(answer.is_ok());
    relay.recalls("a", 6..=10);
    relay.until_drained("kafka");
    assert_eq!(listed(&setup).len(), 1);
    kafka.alter_topic("once", &[("max.message.bytes", "100000")]);
    kafka.freeze();
    let command = start_retry(&setup, &relay);
    relay.kill();
    assert!(!command.wait_with_output().unwrap().status.success());
    kafka.thaw();
    let spool = rusqlite::Connection::open(setup.spool()).unwrap();
    spool.execute_batch("DELETE FROM cursors").unwrap();
    drop(spool);
    let relay = setup.start();
    relay.recalls("a", 11..=13);
    relay.until_drained("kafka");
    assert_published(&dead_letters(&setup, &["retry", ALL]), 1);
    relay.recalls("a", 14..=15);
    relay.until_drained("kafka");
    relay.stop();
    let (a, b): (Vec<_>, Vec<_>) = kafka
        .recalls("once", 16)
        .into_iter()
        .partition(|recall| recall.group == "a");
    assert_eq!(numbers(&a), (1..=15).collect::<Vec<_>>());
    assert_eq!(b.len(), 1, "{b:?}");
    assert!(read_dead_letters(&setup).is_empty());
}

/// A sink that is not configured any more cannot publish its dead letters: the error says what can be done.
#[test]
fn dead_letters_of_a_removed_sink_can_only_be_dropped() {
    let rabbitmq = RabbitMq::shared();
    let (setup, relay) = with_dead_letters(&*rabbitmq, "removed", 2);
    relay.stop();
    let setup = ["URI", "EXCHANGE", "QUEUE", "DEAD_LETTER_QUEUE"]
        .iter()
        .fold(setup, |setup, key| {
            setup.without(&format!("RECALL_RABBITMQ__{key}"))
        });
    let relay = setup.start();
    let (code, _, error) = dead_letters(&setup, &["retry", ALL]);
    assert_eq!(code, 1);
    assert!(error.contains("rabbitmq is not configured"), "{error}");
    let (code, ..) = dead_letters(&setup, &["drop", ALL, "--sink", "rabbitmq", "--yes"]);
    assert_eq!(code, 0);
    assert!(listed(&setup).is_empty());
    relay.stop();
}
