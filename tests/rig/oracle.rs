//! Compares the published recalls with the acknowledged ones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use super::{Load, Relay, Setup, until};

/// A recall: its group, and its number within the group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recall {
    pub group: String,
    pub number: u64,
}

impl Recall {
    pub fn new(group: &str, number: u64) -> Self {
        Self {
            group: group.to_owned(),
            number,
        }
    }

    /// The recall that an event reports.
    pub fn of(event: &[u8]) -> Self {
        Self::of_event(&serde_json::from_slice(event).unwrap())
    }

    pub(super) fn of_event(event: &Value) -> Self {
        let number = event["data"]["messages"][0]["seq"].as_u64().unwrap();
        Self::new(event["subject"].as_str().unwrap(), number)
    }
}

/// The recall of every event that is still in the spool's file.
pub fn read_spool(setup: &Setup) -> Vec<Recall> {
    published(&read_events(setup))
}

/// Every event that is still in the spool's file, in structured mode.
pub fn read_events(setup: &Setup) -> Vec<Value> {
    rusqlite::Connection::open(setup.spool())
        .unwrap()
        .prepare("SELECT body FROM events ORDER BY seq")
        .unwrap()
        .query_map([], |row| row.get::<_, String>(0))
        .unwrap()
        .map(|body| serde_json::from_str(&body.unwrap()).unwrap())
        .collect()
}

/// A dead letter that stays in the spool because the broker did not accept it as one.
#[derive(Debug)]
pub struct KeptDeadLetter {
    pub reason: String,
    pub detail: String,
    /// The event's length.
    pub bytes: usize,
}

/// Every dead letter in the spool's file.
pub fn read_dead_letters(setup: &Setup) -> Vec<KeptDeadLetter> {
    rusqlite::Connection::open(setup.spool())
        .unwrap()
        .prepare("SELECT reason, detail, length(body) FROM dead_letters ORDER BY seq")
        .unwrap()
        .query_map([], |row| {
            Ok(KeptDeadLetter {
                reason: row.get(0)?,
                detail: row.get(1)?,
                bytes: row.get(2)?,
            })
        })
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

/// The recalls that events report, in order.
pub fn published(events: &[Value]) -> Vec<Recall> {
    events.iter().map(Recall::of_event).collect()
}

/// Asserts that no acknowledged recall is missing and that the first copies of a group's events are in order.
/// Returns how many events are duplicates.
#[track_caller]
pub fn assert_kept(acknowledged: &[Recall], found: &[Recall]) -> usize {
    let duplicates = assert_none_missing(acknowledged, found);
    let mut seen = BTreeSet::new();
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    for recall in found {
        if seen.insert(recall) {
            let last = newest.entry(&recall.group).or_default();
            assert!(recall.number > *last, "{recall:?} came after number {last}");
            *last = recall.number;
        }
    }
    duplicates
}

/// Asserts that no acknowledged recall is missing, in whatever order they are. Returns how many events are duplicates.
#[track_caller]
pub fn assert_none_missing(acknowledged: &[Recall], found: &[Recall]) -> usize {
    let distinct: BTreeSet<_> = found.iter().collect();
    let missing: Vec<_> = acknowledged
        .iter()
        .filter(|recall| !distinct.contains(recall))
        .collect();
    assert!(
        missing.is_empty(),
        "missing {} of {}: {missing:?}",
        missing.len(),
        acknowledged.len()
    );
    found.len() - distinct.len()
}

/// Sends recalls continuously while `act` runs; returns those that were acknowledged.
pub fn under_load(relay: &Relay, act: impl FnOnce()) -> Vec<Recall> {
    let load = Load::start(relay.callbacks, "load", 6, Duration::from_millis(10));
    until("load before", || (load.acknowledged() > 200).then_some(()));
    act();
    let before = load.acknowledged();
    until("load afterwards", || {
        (load.acknowledged() > before + 200).then_some(())
    });
    load.stop()
}

/// Kills the relay repeatedly under load, then starts it again and waits until the sink has confirmed everything.
/// Returns the recalls that were acknowledged.
pub fn kill_repeatedly(setup: &Setup, sink: &str, rounds: usize) -> Vec<Recall> {
    let mut acknowledged = Vec::new();
    for round in 0..rounds {
        let relay = setup.start();
        relay.until_sink(sink, "up");
        let load = Load::start(relay.callbacks, &format!("round{round}"), 6, Duration::ZERO);
        until("load", || (load.acknowledged() > 400).then_some(()));
        relay.kill();
        acknowledged.extend(load.stop());
    }
    let relay = setup.start();
    relay.until_drained(sink);
    relay.stop();
    acknowledged
}
