//! `recall-relay spool replay` with real brokers.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod rig;

use std::ops::RangeInclusive;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rig::{Broker, Kafka, Load, RabbitMq, Recall, Relay, Setup, until};

const REPLAY_FROM_11: [&str; 2] = ["--since", "seq:11"];

fn numbers(recalls: &[Recall]) -> Vec<u64> {
    recalls.iter().map(|recall| recall.number).collect()
}

/// Runs `spool replay` for a sink; returns its exit code, stdout and stderr.
fn replay(setup: &Setup, sink: &str, arguments: &[&str]) -> (i32, String, String) {
    let command: Vec<&str> = ["spool", "replay", sink]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect();
    setup.run(&command)
}

/// Starts `spool replay` for a sink from event 11.
fn start_replay(setup: &Setup, sink: &str) -> Child {
    let mut command: Command = setup.command(&["spool", "replay", sink, "--since", "seq:11"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[track_caller]
fn assert_replayed(outcome: &(i32, String, String), events: u64) {
    let (code, output, error) = outcome;
    assert_eq!((*code, error.as_str()), (0, ""));
    let expected = format!("confirmed {events} events again");
    assert!(output.contains(&expected), "{output}");
}

fn until_started(relay: &Relay) {
    until("the replay to start", || relay.log_entry("replay_started"));
}

/// `[1..=last, from..=last, last + 1..=newest]`
fn twice(last: u64, from: u64, newest: u64) -> Vec<u64> {
    (1..=last)
        .chain(from..=last)
        .chain(last + 1..=newest)
        .collect()
}

fn publishes_again_in_order_and_new_events_follow(broker: &dyn Broker, sink: &str) {
    let setup = broker.settings(Setup::new(), "replayed");
    let relay = setup.start();
    relay.recalls("a", 1..=100);
    relay.until_drained(sink);
    let (code, output, error) = replay(&setup, sink, &["--since", "seq:11", "--dry-run"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(output.contains("90 events would be sent"), "{output}");
    assert_replayed(&replay(&setup, sink, &REPLAY_FROM_11), 90);
    relay.recalls("a", 101..=110);
    relay.until_drained(sink);
    let found = broker.recalls("replayed", 200);
    assert_eq!(numbers(&found), twice(100, 11, 110));
    assert!(
        relay.log_entry("replay_finished").is_some(),
        "{}",
        relay.log()
    );
    relay.stop();
}

#[test]
fn kafka_gets_events_again_in_order_and_new_events_follow() {
    publishes_again_in_order_and_new_events_follow(&*Kafka::shared(), "kafka");
}

#[test]
fn rabbitmq_gets_events_again_in_order_and_new_events_follow() {
    publishes_again_in_order_and_new_events_follow(&*RabbitMq::shared(), "rabbitmq");
}

/// Events of a replay are sent once, and those that arrive meanwhile come after it.
fn continues_after_the_broker_was_killed(broker: &mut dyn Broker, sink: &str) {
    let setup = broker.settings(Setup::new(), "killed");
    let relay = setup.start();
    relay.recalls("a", 1..=50);
    relay.until_drained(sink);
    broker.kill();
    let command = start_replay(&setup, sink);
    relay.recalls("a", 51..=60);
    relay.until_sink(sink, "down");
    broker.resume();
    let output = command.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    relay.until_drained(sink);
    let found = broker.recalls("killed", 100);
    let sent: Vec<Recall> = (1..=60).map(|number| Recall::new("a", number)).collect();
    let repeated = rig::assert_kept(&sent, &found);
    let found = numbers(&found);
    // Those that were in flight before the replay began are sent again, too: else older ones would come after them.
    let in_flight = u64::try_from(repeated - 40).unwrap();
    assert_eq!(found, twice(50 + in_flight, 11, 60));
    relay.stop();
}

#[test]
fn a_replay_to_kafka_continues_after_the_broker_was_killed() {
    continues_after_the_broker_was_killed(&mut *Kafka::shared(), "kafka");
}

#[test]
fn a_replay_to_rabbitmq_continues_after_the_broker_was_killed() {
    continues_after_the_broker_was_killed(&mut *RabbitMq::shared(), "rabbitmq");
}

/// The log says where the replay stopped, and new events do not wait for it any more.
#[test]
fn a_replay_ends_with_its_command() {
    let kafka = Kafka::shared();
    let setup = kafka.settings(Setup::new(), "abandoned");
    let relay = setup.start();
    relay.recalls("a", 1..=50);
    relay.until_drained("kafka");
    kafka.freeze();
    let mut command = start_replay(&setup, "kafka");
    until_started(&relay);
    let (code, _, error) = replay(&setup, "kafka", &REPLAY_FROM_11);
    assert_eq!(code, 1);
    assert!(error.contains("already sending events again"), "{error}");
    kill(Pid::from_raw(command.id().cast_signed()), Signal::SIGTERM).unwrap();
    command.wait().unwrap();
    let stopped = until("the end of the replay", || {
        relay.log_entry("replay_stopped")
    });
    assert_eq!(stopped["seq"], "10");
    let message = stopped["message"].as_str().unwrap();
    assert!(message.contains("--since seq:11"), "{message}");
    kafka.thaw();
    relay.recalls("a", 51..=60);
    relay.until_drained("kafka");
    assert_replayed(&replay(&setup, "kafka", &["--since", "seq:60"]), 1);
    relay.stop();
}

/// Nothing of a replay is left after the relay was killed: what was confirmed before is not sent again.
fn killing_the_relay_ends_the_replay(setup: &Setup, kafka: &mut Kafka, topic: &str) -> Vec<u64> {
    let relay = setup.start();
    relay.recalls("a", 1..=50);
    relay.until_drained("kafka");
    kafka.freeze();
    let command = start_replay(setup, "kafka");
    until_started(&relay);
    relay.kill();
    let output = command.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("closed the connection"), "{error}");
    kafka.thaw();
    let relay = setup.start();
    relay.recalls("a", 51..=60);
    relay.until_drained("kafka");
    relay.stop();
    numbers(&kafka.recalls(topic, 60))
}

#[test]
fn killing_the_relay_ends_a_replay() {
    let mut kafka = Kafka::shared();
    let setup = kafka.settings(Setup::new(), "relay-killed");
    let found = killing_the_relay_ends_the_replay(&setup, &mut kafka, "relay-killed");
    assert_eq!(found[..50], (1..=50).collect::<Vec<_>>());
    assert_eq!(found[found.len() - 10..], (51..=60).collect::<Vec<_>>());
}

fn exactly_once(kafka: &Kafka, topic: &str) -> Setup {
    let setup = kafka.settings(Setup::new(), topic);
    setup.set("RECALL_KAFKA__EXACTLY_ONCE", "true")
}

#[test]
fn killing_the_relay_in_a_replay_duplicates_nothing_with_exactly_once() {
    let mut kafka = Kafka::shared();
    let setup = exactly_once(&kafka, "once-killed");
    let found = killing_the_relay_ends_the_replay(&setup, &mut kafka, "once-killed");
    assert_eq!(found, (1..=60).collect::<Vec<_>>());
}

/// New events are published once, whatever is replayed meanwhile, although the relay and its cursor are lost in between:
/// the position that the cluster keeps has not moved back.
#[test]
fn a_replay_does_not_move_the_committed_position_back() {
    let kafka = Kafka::shared();
    let setup = exactly_once(&kafka, "once");
    let relay = setup.start();
    relay.recalls("a", 1..=50);
    relay.until_drained("kafka");
    assert_replayed(&replay(&setup, "kafka", &REPLAY_FROM_11), 40);
    relay.kill();
    // The spool has lost its cursor: only the cluster's position is left.
    let spool = rusqlite::Connection::open(setup.spool()).unwrap();
    spool.execute_batch("DELETE FROM cursors").unwrap();
    drop(spool);
    let relay = setup.start();
    relay.recalls("a", 51..=60);
    relay.until_drained("kafka");
    assert_eq!(numbers(&kafka.recalls("once", 100)), twice(50, 11, 60));
    // A session that begins in the middle of a replay reads the position again: it is no reason to skip the rest.
    assert_replayed(&replay(&setup, "kafka", &["--since", "seq:1"]), 60);
    assert_eq!(kafka.recalls("once", 160).len(), 160);
    relay.stop();
}

/// A replay under load: every callback is answered and published, and order is kept among first copies.
#[test]
fn callbacks_are_answered_and_published_while_events_are_sent_again() {
    let kafka = Kafka::shared();
    let setup = kafka.settings(Setup::new(), "load");
    let relay = setup.start();
    relay.until_sink("kafka", "up");
    let load = Load::start(relay.callbacks, "load", 6, Duration::from_millis(1));
    until("load", || (load.acknowledged() > 500).then_some(()));
    let (code, output, error) = replay(&setup, "kafka", &["--since", "1h"]);
    assert_eq!((code, error.as_str()), (0, ""), "{output}");
    let acknowledged = load.stop();
    relay.until_drained("kafka");
    let found = kafka.recalls("load", acknowledged.len() + 500);
    let duplicates = rig::assert_kept(&acknowledged, &found);
    assert!(duplicates >= 500, "{duplicates}");
    relay.stop();
}

fn run_since(setup: &Setup, sink: &str, since: &str) -> (i32, String, String) {
    replay(setup, sink, &["--since", since])
}

#[test]
fn what_cannot_be_replayed_is_an_error_that_says_why() {
    let setup = Setup::new();
    let (code, _, error) = run_since(&setup, "stdout", "1h");
    assert_eq!(code, 1);
    assert!(error.contains("there is no spool"), "{error}");
    let relay = setup.start();
    send(&relay, 1..=3);
    let (code, _, error) = run_since(&setup, "kafka", "1h");
    assert_eq!(code, 1);
    assert!(error.contains("no sink `kafka`"), "{error}");
    let (code, _, error) = run_since(&setup, "stdout", "yesterday");
    assert_eq!(code, 2);
    assert!(error.contains("seq:1234"), "{error}");
    let (code, output, _) = run_since(&setup, "stdout", "seq:4");
    assert_eq!(code, 0);
    assert!(output.contains("confirmed 0 events"), "{output}");
    relay.stop();
    let (code, _, error) = run_since(&setup, "stdout", "1h");
    assert_eq!(code, 1);
    assert!(error.contains("start it"), "{error}");
    let (code, output, _) = replay(&setup, "stdout", &["--since", "1h", "--dry-run"]);
    assert_eq!(code, 0);
    assert!(output.contains("3 events would be sent"), "{output}");
}

fn send(relay: &Relay, numbers: RangeInclusive<u64>) {
    relay.recalls("a", numbers);
    relay.until_drained("stdout");
}
