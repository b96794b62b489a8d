use std::ops::RangeInclusive;

use proptest::prelude::*;

use super::*;

const ROUTE: &str = "1400000001.group.Public";

/// Messages that were published again together.
#[derive(Debug, PartialEq, Eq)]
struct Retry {
    /// When, in seconds since the start.
    second: u64,
    seqs: Vec<u64>,
    /// How many of them the broker accepted.
    accepted: usize,
}

/// A broker that rejects some messages.
struct Trial {
    queue: RetryQueue,
    start: Instant,
    retries: Vec<Retry>,
    accepted: Vec<u64>,
}

impl Trial {
    /// These messages were just published for the first time, and rejected.
    fn rejected(seqs: RangeInclusive<u64>) -> Self {
        let mut trial = Self {
            queue: RetryQueue::default(),
            start: Instant::now(),
            retries: Vec::new(),
            accepted: Vec::new(),
        };
        trial.reject(seqs, ROUTE, 0);
        trial
    }

    fn at(&self, second: u64) -> Instant {
        self.start + Duration::from_secs(second)
    }

    fn reject(&mut self, seqs: RangeInclusive<u64>, route: &str, second: u64) {
        let now = self.at(second);
        seqs.for_each(|seq| self.queue.push(Seq(seq), route, "full".into(), now));
    }

    /// Makes every retry that is due up to this second; `accepts` says which messages the broker accepts when.
    fn run_until(&mut self, second: u64, mut accepts: impl FnMut(u64, u64) -> bool) -> &[Retry] {
        let end = self.at(second);
        while let Some(due) = self.queue.due()
            && due <= end
        {
            let now = (due - self.start).as_secs();
            let seqs = self.queue.take_due(due);
            assert_eq!(self.queue.take_due(due), [], "taken twice");
            let accepted_before = self.accepted.len();
            for seq in &seqs {
                if accepts(now, seq.0) {
                    self.queue.complete(*seq, due);
                    self.accepted.push(seq.0);
                } else {
                    self.queue.push(*seq, ROUTE, "full".into(), due);
                }
            }
            self.retries.push(Retry {
                second: now,
                seqs: seqs.iter().map(|seq| seq.0).collect(),
                accepted: self.accepted.len() - accepted_before,
            });
        }
        &self.retries
    }

    /// How many messages were published again and rejected again.
    fn rejected_again(&self) -> usize {
        let retried: usize = self.retries.iter().map(|retry| retry.seqs.len()).sum();
        retried - self.accepted.len()
    }
}

#[test]
fn one_message_after_the_other_is_retried_after_pauses_of_up_to_a_minute() {
    let mut trial = Trial::rejected(1..=3);
    let retries = trial.run_until(250, |_, _| false);
    let retry = |second, seq| Retry {
        second,
        seqs: vec![seq],
        accepted: 0,
    };
    let expected = [
        retry(1, 1),
        retry(3, 2),
        retry(7, 3),
        retry(15, 1),
        retry(31, 2),
        retry(63, 3),
        retry(123, 1),
        retry(183, 2),
        retry(243, 3),
    ];
    assert_eq!(retries, expected);
}

#[test]
fn the_others_follow_at_once_when_one_is_accepted() {
    let mut trial = Trial::rejected(1..=300);
    let retries = trial.run_until(1000, |second, _| second >= 100);
    let sizes: Vec<_> = retries
        .iter()
        .filter(|retry| retry.second >= 100)
        .map(|retry| (retry.second, retry.seqs.len()))
        .collect();
    let doubling = [1, 2, 4, 8, 16, 32, 64, 128, 45].map(|size| (123, size));
    assert_eq!(sizes, doubling);
    assert_eq!(trial.queue.due(), None);
    assert_eq!(trial.queue.reason(), None);
    // The next message that is rejected begins with the shortest pause again.
    trial.reject(400..=400, ROUTE, 200);
    assert_eq!(trial.queue.due(), Some(trial.at(201)));
}

/// With each place that becomes free, all messages could be published again: 300 x 300 / 2 copies.
#[test]
fn a_slow_consumer_causes_few_copies() {
    let mut trial = Trial::rejected(1..=300);
    let mut taken_at = 0;
    // One message is accepted in each second.
    trial.run_until(1000, |second, _| {
        std::mem::replace(&mut taken_at, second) < second
    });
    let last = trial.retries.last().unwrap().second;
    assert_eq!((trial.accepted.len(), last), (300, 300));
    assert_eq!(trial.rejected_again(), 2 * 298 + 1);
}

/// A queue may become full again while single messages get through.
#[test]
fn a_retry_is_at_most_twice_as_large_as_the_one_before() {
    let mut trial = Trial::rejected(1..=1);
    let now = trial.at(1);
    for seq in 1..10 {
        assert_eq!(trial.queue.take_due(now), [Seq(seq)]);
        trial.reject(seq + 1..=seq + 1, ROUTE, 1);
        trial.queue.complete(Seq(seq), now);
    }
    trial.reject(100..=200, ROUTE, 1);
    assert_eq!(trial.queue.take_due(now), [Seq(10), Seq(100)]);
}

#[test]
fn a_message_that_is_always_rejected_does_not_stop_the_others() {
    let mut trial = Trial::rejected(1..=50);
    trial.run_until(3, |_, seq| seq != 1);
    assert_eq!(trial.accepted, (2..=50).collect::<Vec<_>>());
}

/// A queue that takes the messages of one routing key says nothing about the queues of another.
#[test]
fn each_routing_key_is_retried_on_its_own() {
    let mut trial = Trial::rejected(1..=1000);
    trial.run_until(100, |_, _| false);
    trial.reject(2001..=2040, "1400000001.c2c", 100);
    trial.run_until(101, |_, seq| seq > 2000);
    assert_eq!(trial.accepted, (2001..=2040).collect::<Vec<_>>());
    assert_eq!(trial.queue.due(), Some(trial.at(123)));
}

/// Operators would get a log line for each change.
#[test]
fn the_reason_is_constant_while_messages_of_several_routing_keys_are_rejected() {
    let mut trial = Trial::rejected(10..=10);
    let unbound = |second| format!("no queue, {second}");
    for second in 1..=9 {
        let now = trial.at(second);
        // Alphabetically, the one is before `ROUTE` and the other one after it.
        for (seq, route) in [(20, "1"), (30, "2")] {
            trial
                .queue
                .push(Seq(seq + second), route, unbound(second), now);
        }
        assert_eq!(trial.queue.reason(), Some("full"));
    }
    let retried = trial.queue.take_due(trial.at(9));
    for seq in retried {
        trial.queue.complete(seq, trial.at(9));
    }
    assert_eq!(trial.queue.reason(), Some("no queue, 9"));
}

proptest! {
    /// Whatever the broker accepts. Retries at the same moment follow each other because all before were accepted.
    #[test]
    fn copies_are_bounded(
        messages in 1..100_u64,
        accepts in prop::collection::vec(prop::bool::weighted(0.8), 1..400),
    ) {
        let mut trial = Trial::rejected(1..=messages);
        let mut accepts = accepts.into_iter();
        trial.run_until(3600, |_, _| accepts.next().unwrap_or(false));
        let (mut last, mut pause) = (0, 1);
        for at_once in trial.retries.chunk_by(|one, next| one.second == next.second) {
            let second = at_once[0].second;
            prop_assert_eq!(second - last, pause);
            prop_assert_eq!(at_once[0].seqs.len(), 1);
            let published: usize = at_once.iter().map(|retry| retry.seqs.len()).sum();
            let accepted: usize = at_once.iter().map(|retry| retry.accepted).sum();
            let rejected = published - accepted;
            prop_assert!(rejected <= accepted + 1);
            pause = if accepted == 0 { (2 * pause).min(60) } else { 1 };
            last = second;
        }
        // Nothing is lost, and nothing that was accepted is published again.
        let waiting = trial.queue.routes.values().flat_map(|route| &route.waiting);
        let mut all: Vec<_> = waiting.map(|seq| seq.0).chain(trial.accepted).collect();
        all.sort_unstable();
        prop_assert_eq!(all, (1..=messages).collect::<Vec<_>>());
    }

    /// Whichever messages are always rejected: every other one is accepted after at most one pause for each of them.
    #[test]
    fn every_message_gets_its_turn(rejected in prop::collection::vec(any::<bool>(), 1..100)) {
        let mut trial = Trial::rejected(1..=rejected.len() as u64);
        let accepts = |seq: u64| !rejected[usize::try_from(seq).unwrap() - 1];
        trial.run_until(60 * rejected.len() as u64, |_, seq| accepts(seq));
        trial.accepted.sort_unstable();
        let expected: Vec<_> = (1..=rejected.len() as u64).filter(|seq| accepts(*seq)).collect();
        prop_assert_eq!(trial.accepted, expected);
    }
}
