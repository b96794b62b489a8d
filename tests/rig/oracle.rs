//! What must be true of what was acknowledged and what was found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use super::{Connection, Load, Relay, Setup, recall, recall_query, until};

/// One recall: its group, and its number within it.
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

    /// The recall that an event tells of.
    pub fn of(event: &[u8]) -> Self {
        Self::of_event(&serde_json::from_slice(event).unwrap())
    }

    fn of_event(event: &Value) -> Self {
        let number = event["data"]["messages"][0]["seq"].as_u64().unwrap();
        Self::new(event["subject"].as_str().unwrap(), number)
    }
}

/// Every event that is still in the spool's file.
pub fn read_spool(setup: &Setup) -> Vec<Recall> {
    rusqlite::Connection::open(setup.spool())
        .unwrap()
        .prepare("SELECT body FROM events ORDER BY seq")
        .unwrap()
        .query_map([], |row| row.get::<_, String>(0))
        .unwrap()
        .map(|body| Recall::of(body.unwrap().as_bytes()))
        .collect()
}

/// The recalls that events tell of, in their order.
pub fn published(events: &[Value]) -> Vec<Recall> {
    events.iter().map(Recall::of_event).collect()
}

/// Nothing that was acknowledged is missing, and the first copies of a group's events are in order.
/// Returns how many came more than once.
#[track_caller]
pub fn assert_kept(acknowledged: &[Recall], found: &[Recall]) -> usize {
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
    let mut seen = BTreeSet::new();
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    for recall in found {
        if seen.insert(recall) {
            let last = newest.entry(&recall.group).or_default();
            assert!(recall.number > *last, "{recall:?} came after number {last}");
            *last = recall.number;
        }
    }
    found.len() - distinct.len()
}

/// Sends recalls without a pause while `act` does something; returns what was acknowledged.
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

/// Sends recalls of a group one after the other; returns them, and the median time of an answer.
pub fn one_by_one(relay: &Relay, group: &str) -> (Vec<Recall>, Duration) {
    let mut connection = Connection::open(relay.callbacks).unwrap();
    let target = format!("/?{}", recall_query());
    let (sent, mut times): (Vec<_>, Vec<_>) = (1..=100)
        .map(|number| {
            let answer = connection
                .request("POST", &target, recall(group, number).as_bytes())
                .unwrap();
            assert!(answer.is_ok(), "{answer:?}");
            (Recall::new(group, number), answer.took)
        })
        .unzip();
    times.sort_unstable();
    (sent, times[times.len() / 2])
}

/// An answer takes as long whether the broker is there or not. Room for a machine that is busy with other
/// things; whoever waits for a broker that is away waits for 200 ms at least, the shortest pause.
#[track_caller]
pub fn assert_as_fast(absent: Duration, present: Duration) {
    assert!(
        absent <= present * 5 + Duration::from_millis(100),
        "an answer took {absent:?} without the broker, {present:?} with it"
    );
}

/// Kills the relay again and again under load, and starts it once more; returns what was acknowledged,
/// once the sink has confirmed it all.
pub fn kill_again_and_again(setup: &Setup, sink: &str, rounds: usize) -> Vec<Recall> {
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
