//! `kafka.exactly_once`: a `read_committed` consumer sees each event once, on a real Kafka.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod rig;

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use rig::kafka::{Operation, Resource, STRICT};
use rig::{
    Broker as _, Kafka, Load, Recall, Relay, Setup, assert_kept, kill_repeatedly, large_recall,
    read_dead_letters, read_spool, recall_query, under_load, until,
};
use rusqlite::Connection;
use tempfile::TempDir;

/// The code of the log entry for a committed position that is not of this spool.
const FOREIGN: &str = "committed_position_ignored";

/// The settings of a relay that publishes to this topic.
fn setup(kafka: &Kafka, topic: &str) -> Setup {
    on_folder(kafka, topic, TempDir::new().unwrap())
}

fn on_folder(kafka: &Kafka, topic: &str, folder: TempDir) -> Setup {
    let setup = kafka.settings(Setup::on(folder), topic);
    setup.set("RECALL_KAFKA__EXACTLY_ONCE", "true")
}

/// Sends recalls of one group and waits until they are published.
fn publish(relay: &Relay, numbers: RangeInclusive<u64>) {
    relay.recalls("a", numbers);
    relay.until_drained("kafka");
}

fn expected(numbers: RangeInclusive<u64>) -> Vec<Recall> {
    numbers.map(|number| Recall::new("a", number)).collect()
}

/// Asserts that every recall was published once and in order.
#[track_caller]
fn assert_once(acknowledged: &[Recall], kafka: &Kafka, topic: &str) {
    let found = kafka.recalls(topic, acknowledged.len());
    assert_eq!(assert_kept(acknowledged, &found), 0, "duplicates");
}

/// Copies the folder of a spool that is not open.
fn copy(from: &Setup, to: &Path) {
    let to = to.join("data");
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(from.spool().parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The relay's consumer group, which is also its transactional id.
fn identity(setup: &Setup) -> String {
    let spool = Connection::open(setup.spool()).unwrap();
    let id = "SELECT spool_id FROM identity";
    let id: [u8; 16] = spool.query_row(id, [], |row| row.get(0)).unwrap();
    format!("recall-relay-{}", uuid::Uuid::from_bytes(id))
}

#[test]
fn killing_the_relay_duplicates_nothing() {
    killing_the_relay_duplicates_nothing_in("structured");
}

#[test]
fn killing_the_relay_duplicates_nothing_in_binary_mode() {
    killing_the_relay_duplicates_nothing_in("binary");
}

fn killing_the_relay_duplicates_nothing_in(content_mode: &str) {
    let kafka = Kafka::shared();
    let topic = format!("killed-{content_mode}");
    let setup = setup(&kafka, &topic).set("RECALL_KAFKA__CONTENT_MODE", content_mode);
    let acknowledged = kill_repeatedly(&setup, "kafka", 6);
    println!("{} acknowledged", acknowledged.len());
    assert_once(&acknowledged, &kafka, &topic);
}

#[test]
fn killing_the_broker_duplicates_nothing() {
    let mut kafka = Kafka::shared();
    let relay = setup(&kafka, "broker-killed").start();
    relay.until_sink("kafka", "up");
    let acknowledged = under_load(&relay, || {
        kafka.kill();
        kafka.resume();
    });
    relay.until_drained("kafka");
    relay.stop();
    assert_once(&acknowledged, &kafka, "broker-killed");
}

/// The spool has lost its cursor; the cluster still has it.
#[test]
fn the_committed_position_is_used_if_it_is_higher() {
    let kafka = Kafka::shared();
    let setup = setup(&kafka, "cursor");
    let relay = setup.start();
    publish(&relay, 1..=50);
    relay.stop();
    let spool = Connection::open(setup.spool()).unwrap();
    spool.execute_batch("DELETE FROM cursors").unwrap();
    drop(spool);
    let relay = setup.start();
    publish(&relay, 51..=60);
    assert!(relay.log_entry(FOREIGN).is_none(), "{}", relay.log());
    relay.stop();
    assert_once(&expected(1..=60), &kafka, "cursor");
}

/// After a week of downtime the cluster deletes the offsets of a group that has no members.
#[test]
fn the_spools_cursor_is_used_if_the_cluster_has_no_offset() {
    let kafka = Kafka::shared();
    let setup = setup(&kafka, "forgotten");
    let relay = setup.start();
    publish(&relay, 1..=50);
    relay.stop();
    kafka.delete_group(&identity(&setup));
    let relay = setup.start();
    publish(&relay, 51..=60);
    let entry = relay.log_entry("committed_position_missing");
    assert!(entry.is_some(), "{}", relay.log());
    relay.stop();
    assert_once(&expected(1..=60), &kafka, "forgotten");
}

/// While `kafka.exactly_once` is off, only the spool's cursor advances.
#[test]
fn exactly_once_can_be_disabled_temporarily() {
    let kafka = Kafka::shared();
    let setup = setup(&kafka, "switched");
    for (exactly_once, numbers) in [("true", 1..=20), ("false", 21..=40), ("true", 41..=60)] {
        let relay = setup
            .with("RECALL_KAFKA__EXACTLY_ONCE", exactly_once)
            .start();
        publish(&relay, numbers);
        relay.stop();
    }
    assert_once(&expected(1..=60), &kafka, "switched");
}

/// The restored spool assigns sequence numbers again, but the committed position refers to the events that had them
/// first.
#[test]
fn a_restored_backup_loses_no_new_events() {
    let kafka = Kafka::shared();
    for (topic, new) in [("backup-few", 101..=105), ("backup-many", 101..=150)] {
        let original = setup(&kafka, topic);
        let relay = original.start();
        publish(&relay, 1..=10);
        relay.stop();
        let backup = TempDir::new().unwrap();
        copy(&original, backup.path());
        let relay = original.start();
        publish(&relay, 11..=30);
        relay.stop();

        let restored = on_folder(&kafka, topic, backup);
        let offline = restored.with("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1");
        let relay = offline.start();
        relay.recalls("a", new.clone());
        relay.stop();
        let relay = restored.start();
        relay.until_drained("kafka");
        assert_eq!(relay.log_entries(FOREIGN).len(), 1, "{}", relay.log());
        relay.stop();
        let acknowledged = [expected(1..=30), expected(new)].concat();
        assert_once(&acknowledged, &kafka, topic);
    }
}

/// If both published, events that were unconfirmed when the spool was copied would be published twice.
#[test]
fn only_the_last_started_of_two_spool_copies_publishes() {
    let kafka = Kafka::shared();
    let original = setup(&kafka, "copied");
    let relay = original.start();
    publish(&relay, 1..=10);
    relay.stop();
    let folder = TempDir::new().unwrap();
    copy(&original, folder.path());
    let copied = on_folder(&kafka, "copied", folder);

    let first = original.start();
    publish(&first, 11..=20);
    let last = copied.start();
    last.until_sink("kafka", "up");
    first.recalls("a", 21..=30);
    let entry = until("the first relay to stop publishing", || {
        first.log_entry("sink_stopped")
    });
    let reason = entry["reason"].as_str().unwrap();
    assert!(reason.contains("another relay publishes as"), "{reason}");
    assert!(reason.contains(&identity(&original)), "{reason}");
    assert_eq!(first.until_sink("kafka", "down")["reason"], reason);
    assert_eq!(first.admin("/readyz").status, 200);
    first.recalls("a", 31..=40);
    publish(&last, 101..=120);
    assert_eq!(first.readiness()["sinks"]["kafka"]["lag"], 20);
    first.stop();
    last.stop();
    let acknowledged = [expected(1..=20), expected(101..=120)].concat();
    let found = kafka.recalls("copied", acknowledged.len());
    assert_eq!(assert_kept(&acknowledged, &found), 0);
    assert_eq!(
        found.len(),
        acknowledged.len(),
        "the first relay published more events"
    );
    assert!(read_spool(&original).contains(&Recall::new("a", 40)));
}

#[test]
fn a_refused_record_becomes_a_dead_letter_exactly_once() {
    let kafka = Kafka::shared();
    let topic = "refused";
    kafka.create_topic(topic, 2, &[("max.message.bytes", "4000")]);
    let setup = setup(&kafka, topic);
    let relay = setup.start();
    let load = Load::start(relay.callbacks, "load", 4, Duration::ZERO);
    until("load", || (load.acknowledged() > 400).then_some(()));
    let large = relay.post(&recall_query(), large_recall("a", 20_000));
    assert!(large.is_ok());
    let sent = load.stop();
    relay.until_drained("kafka");
    relay.stop();
    // The broker refused that event; librdkafka itself will refuse the next one.
    let setup = setup.with("RECALL_KAFKA__PROPERTIES__MESSAGE_MAX_BYTES", "20000");
    let relay = setup.start();
    let larger = relay.post(&recall_query(), large_recall("b", 21_000));
    assert!(larger.is_ok());
    publish(&relay, 1..=20);
    relay.stop();
    assert_once(&[sent, expected(1..=20)].concat(), &kafka, topic);
    let dead = kafka.dead_letters(topic, 1);
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].reason.as_deref(), Some("too_large"));
    // The dead-letter topic does not accept it either, so it stays in the spool.
    let kept = read_dead_letters(&setup);
    assert_eq!(kept.len(), 1, "{kept:?}");
}

/// A broker with both topics, on which the relay has the rights that docs/reference/broker-layout-and-rights.md lists,
/// and `on_dead_letters` on the dead-letter topic.
fn strict(topic: &str, on_dead_letters: Operation) -> Kafka {
    let kafka = Kafka::start_with(&STRICT);
    let dead = format!("{topic}.dead");
    kafka.create_topic(topic, 2, &[]);
    kafka.create_topic(&dead, 2, &[]);
    for (resource, operation) in [
        (Resource::Topic(topic), Operation::Write),
        (Resource::Topic(topic), Operation::Read),
        (Resource::Topic(&dead), on_dead_letters),
        (
            Resource::TransactionalIds("recall-relay-"),
            Operation::Write,
        ),
        (Resource::Groups("recall-relay-"), Operation::Read),
    ] {
        kafka.permit(resource, operation);
    }
    kafka
}

#[test]
fn the_documented_rights_are_sufficient() {
    let topic = "rights";
    let kafka = strict(topic, Operation::Write);
    let relay = kafka.as_user(setup(&kafka, topic)).start();
    publish(&relay, 1..=20);
    assert_eq!(relay.post(&recall_query(), "{").status, 400);
    relay.until_drained("kafka");
    relay.stop();
    assert_once(&expected(1..=20), &kafka, topic);
    assert_eq!(kafka.dead_letters(topic, 1).len(), 1);
}

/// A dead letter that may not be published stays in the spool.
#[test]
fn a_closed_dead_letter_topic_does_not_stop_transactions() {
    let topic = "closed";
    let kafka = strict(topic, Operation::Describe);
    let setup = kafka.as_user(setup(&kafka, topic));
    let relay = setup.start();
    relay.recalls("a", 1..=10);
    assert_eq!(relay.post(&recall_query(), "{").status, 400);
    publish(&relay, 11..=20);
    relay.stop();
    assert_once(&expected(1..=20), &kafka, topic);
    let kept = read_dead_letters(&setup);
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(kept[0].reason, "dead_letter_topic");
}
