//! The disk is full, slow or does not answer.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use serde_json::Value;

use super::page::{Incident, Seen};
use super::rig::{Faults, Recall, Relay, Setup, padded_recall, recall_query, until};

/// The quota of a small spool.
const MAX_BYTES: u64 = 1 << 20;

/// A relay whose sink cannot publish, so that its events stay.
fn with_small_spool(faults: &Faults) -> (Setup, Relay) {
    let setup = Setup::new()
        .set("RECALL_SPOOL__MAX_BYTES", &MAX_BYTES.to_string())
        .with_faults(faults);
    let relay = setup.start();
    relay.recalls("a", 1..=1);
    relay.until_drained("stdout");
    faults.fail_output();
    relay.recalls("a", 2..=2);
    until("the sink to be down", || relay.log_entry("sink_down"));
    (setup, relay)
}

/// Sends large recalls until `is_enough`.
fn fill_until(relay: &Relay, group: &str, is_enough: impl Fn() -> bool) {
    let mut number = 0;
    until("a fuller spool", || {
        number += 1;
        relay.post(&recall_query(), padded_recall(group, number, 4000));
        is_enough().then_some(())
    });
}

/// Fills the spool so far that the relay warns when it looks next.
fn nearly_fill(relay: &Relay) {
    fill_until(relay, "nearly", || {
        relay.readiness()["spool"]["used_bytes"].as_u64().unwrap() > MAX_BYTES / 100 * 85
    });
    until("the warning", || relay.log_entry("spool_filling"));
}

#[test]
fn the_spool_is_nearly_full() {
    let faults = Faults::new();
    let (setup, relay) = with_small_spool(&faults);
    let incident = Incident::begin("spool-nearly-full", &relay);
    nearly_fill(&relay);
    let seen = Seen::of(&relay);
    faults.heal();
    until("space", || relay.log_entry("spool_has_space"));
    until("the end", || relay.log_entry("sink_caught_up"));
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

#[test]
fn the_spool_is_full() {
    let faults = Faults::new();
    let (setup, relay) = with_small_spool(&faults);
    nearly_fill(&relay);
    let incident = Incident::begin("spool-full", &relay);
    fill_until(&relay, "full", || {
        relay.log_entry("callbacks_refused").is_some()
    });
    let seen = until("not to be ready", || {
        (relay.readiness()["ready"] == false).then(|| Seen::of(&relay))
    });
    faults.heal();
    until("the end", || relay.log_entry("sink_caught_up"));
    until("space", || relay.log_entry("spool_has_space"));
    until("a callback to be accepted", || {
        let _ = relay.recall("after", 1);
        relay.log_entry("callbacks_accepted")
    });
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// Syncs have this fault until it is mended.
fn the_disk_stalls(name: &'static str, fault: impl FnOnce(&Faults)) {
    let faults = Faults::new();
    let setup = Setup::new().with_faults(&faults);
    let relay = setup.start();
    relay.recalls("a", 1..=1);
    let incident = Incident::begin(name, &relay);
    fault(&faults);
    assert_eq!(relay.recall("a", 2).status, 503);
    let seen = until("a stall", || {
        relay.log_entry("disk_stalled")?;
        (relay.readiness()["ready"] == false).then(|| Seen::of(&relay))
    });
    faults.heal();
    until("the disk", || relay.log_entry("disk_recovered"));
    relay.recalls("a", 3..=3);
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// Commits that take longer than the vendor waits.
#[test]
fn the_disk_is_slow() {
    the_disk_stalls("disk-slow", |faults| {
        faults.slow_syncs(Duration::from_secs(3));
    });
}

/// A write that does not return.
#[test]
fn the_disk_hangs() {
    the_disk_stalls("disk-hung", Faults::hang_syncs);
}

/// The relay ends: it does not know any more what is on disk. Its supervisor starts it again.
#[test]
fn a_sync_fails() {
    let faults = Faults::new();
    let setup = Setup::new().with_faults(&faults);
    let mut relay = setup.start();
    relay.recalls("a", 1..=3);
    relay.until_drained("stdout");
    let incident = Incident::begin("sync-failed", &relay);
    faults.fail_one_sync();
    assert_eq!(relay.recall("a", 4).status, 503);
    assert_eq!(relay.wait().code(), Some(1));
    incident.compare_with_page(&setup, &relay.log_after_exit(), None);
    faults.heal();
    let relay = setup.start();
    relay.recalls("a", 5..=5);
    relay.stop();
}

/// A part of the file was overwritten.
#[test]
fn the_spool_is_damaged() {
    let faults = Faults::new();
    let setup = Setup::new().set("RECALL_DRAIN_TIMEOUT", "100ms");
    let relay = setup.with_faults(&faults).start();
    relay.recalls("a", 1..=50);
    relay.until_drained("stdout");
    faults.fail_output();
    for number in 51..=200 {
        relay.post(&recall_query(), padded_recall("a", number, 1000));
    }
    // At its end, the WAL is checkpointed.
    relay.stop();
    let file = File::options().write(true).open(setup.spool()).unwrap();
    let middle = file.metadata().unwrap().len() / 2 / 4096 * 4096;
    file.write_all_at(&[0xff; 8192], middle).unwrap();
    let relay = setup.start();
    let incident = Incident::at_start("spool-damaged")
        .called(&relay.callbacks.to_string(), "0.0.0.0:8080")
        .called(&relay.admin.to_string(), "127.0.0.1:8081");
    until("the salvage", || relay.log_entry("spool_damaged"));
    until("the end", || relay.log_entry("sink_caught_up"));
    let seen = Seen::of(&relay);
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// The bytes of one event were changed on the disk; the file's structure is as it was.
#[test]
fn an_event_is_damaged() {
    let faults = Faults::new();
    let setup = Setup::new().set("RECALL_DRAIN_TIMEOUT", "100ms");
    let relay = setup.with_faults(&faults).start();
    faults.fail_output();
    relay.recalls("a", 1..=2);
    relay.recalls("to-be-damaged", 3..=3);
    relay.recalls("a", 4..=5);
    // At its end, the WAL is checkpointed.
    relay.stop();
    let bytes = std::fs::read(setup.spool()).unwrap();
    // With a quotation mark, only the event's body has it.
    let is_body = |part: &[u8]| part == b"\"to-be-damaged";
    let at = bytes.windows(14).rposition(is_body).unwrap();
    let file = File::options().write(true).open(setup.spool()).unwrap();
    file.write_all_at(b"{", at as u64).unwrap();
    let relay = setup.start();
    let incident = Incident::at_start("event-unreadable")
        .called(&relay.callbacks.to_string(), "0.0.0.0:8080")
        .called(&relay.admin.to_string(), "127.0.0.1:8081");
    until("the line", || relay.log_entry("event_unreadable"));
    until("the end", || relay.log_entry("sink_caught_up"));
    let seen = Seen::of(&relay);
    incident
        .also_shows_metrics(&relay, &["recall_spool_unreadable_events"])
        .compare_with_page(&setup, &relay.log(), Some(&seen));
    let printed = relay.stop();
    let number = |event: &Value| Recall::of(event.to_string().as_bytes()).number;
    let numbers: Vec<_> = printed.iter().map(number).collect();
    assert_eq!(numbers, [1, 2, 4, 5]);
}
