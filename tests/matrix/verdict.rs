//! The oracle: compares the callbacks that were answered OK with the events that have arrived.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use uuid::Uuid;

use super::ledger::Ledger;

/// An event that a subscriber received.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub conversation: usize,
    pub number: usize,
    pub id: Uuid,
}

impl Arrival {
    /// Parses an event; `None` if its conversation is not named `tag`, a hyphen and a number.
    pub fn of(event: &[u8], tag: &str) -> Option<Self> {
        let event: Value = serde_json::from_slice(event).ok()?;
        let conversation = event["subject"].as_str()?.strip_prefix(tag)?;
        let number = event["data"]["messages"][0]["seq"].as_u64()?;
        Some(Self {
            conversation: conversation.strip_prefix('-')?.parse().ok()?,
            number: usize::try_from(number).ok()?,
            id: event["id"].as_str()?.parse().ok()?,
        })
    }
}

/// The differences between a ledger and what one sink's subscriber received.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Answered OK but not received: conversation and number.
    pub missing: Vec<(usize, usize)>,
    /// Copies of events, not counting the first of each.
    pub duplicates: u64,
    /// First copies that arrived after a later number of their conversation: conversation, number, and the later one.
    pub out_of_order: Vec<(usize, usize, usize)>,
    /// Copies with different ids, and events that were never sent.
    pub unexpected: Vec<String>,
}

/// Compares the ledger with the arrivals, whose order must be the order of receipt within each conversation. Events in
/// `deleted` do not count as missing.
pub fn compare(ledger: &Ledger, arrivals: &[Arrival], deleted: &[Arrival]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut ids: HashMap<(usize, usize), Uuid> = HashMap::with_capacity(arrivals.len());
    let mut newest: HashMap<usize, usize> = HashMap::new();
    for arrival in arrivals {
        let (conversation, number) = (arrival.conversation, arrival.number);
        let name = format!("{conversation}/{number}");
        if let Some(known) = ids.get(&(conversation, number)) {
            verdict.duplicates += 1;
            if *known != arrival.id {
                verdict.unexpected.push(format!("{name} came with two ids"));
            }
            continue;
        }
        ids.insert((conversation, number), arrival.id);
        let newest = newest.entry(conversation).or_default();
        if number < *newest {
            let late = (conversation, number, *newest);
            verdict.out_of_order.push(late);
        }
        *newest = number.max(*newest);
        let sent = ledger.conversations.get(conversation);
        if sent.is_none_or(|numbers| numbers.get(number).copied().flatten().is_none()) {
            verdict.unexpected.push(format!("{name} was never sent"));
        }
    }
    let deleted = deleted.iter().map(|it| (it.conversation, it.number));
    let deleted: HashSet<(usize, usize)> = deleted.collect();
    let ok = ledger.callbacks().filter(|(_, callback)| callback.is_ok);
    let missing = ok.map(|(place, _)| place);
    verdict.missing = missing
        .filter(|place| !ids.contains_key(place) && !deleted.contains(place))
        .collect();
    verdict
}

/// Tests the oracle itself, as one of the trials: it reports every kind of difference, and none if there is none.
pub fn detects_every_kind_of_violation() {
    let mut ledger = Ledger::default();
    for line in [
        "0 1 ok 900 10",
        "0 2 none 2000000 20",
        "0 3 ok 900 30",
        "0 4 ok 900 40",
        "1 1 503 900 50",
    ] {
        ledger.add_line(line).unwrap();
    }
    let arrival = |number, id| Arrival {
        conversation: 0,
        number,
        id: Uuid::from_u128(id),
    };
    let fine = [arrival(1, 1), arrival(3, 3), arrival(3, 3), arrival(4, 4)];
    let verdict = compare(&ledger, &fine, &[]);
    assert_eq!(verdict.duplicates, 1);
    assert_eq!(verdict.missing, []);
    assert_eq!(verdict.out_of_order, []);
    assert_eq!(verdict.unexpected, [""; 0]);

    let wrong = [arrival(3, 3), arrival(2, 2), arrival(3, 33), arrival(5, 5)];
    assert_eq!(compare(&ledger, &wrong, &[arrival(1, 1)]).missing, [(0, 4)]);
    let verdict = compare(&ledger, &wrong, &[]);
    assert_eq!(verdict.missing, [(0, 1), (0, 4)]);
    assert_eq!(verdict.out_of_order, [(0, 2, 3)]);
    let unexpected = ["0/3 came with two ids", "0/5 was never sent"];
    assert_eq!(verdict.unexpected, unexpected);
}
