//! Keeps the order within a conversation: at most one of its messages is in flight.

use std::collections::{HashMap, VecDeque};

use crate::event::Seq;
use crate::sink::Delivery;

/// Numbers of the messages that wait to be published.
#[derive(Debug, Default)]
pub(super) struct KeyedQueue {
    /// The keys that have a message ready or in flight, each with the messages waiting for that one.
    active: HashMap<Box<str>, VecDeque<Seq>>,
    ready: VecDeque<Seq>,
}

/// The key of a message. Messages with the same key are published one at a time; a dead letter has no key.
fn key(delivery: &Delivery) -> Option<&str> {
    (!delivery.is_dead_letter()).then_some(&delivery.event.conversation)
}

impl KeyedQueue {
    /// Adds a message after all others of its key.
    pub(super) fn push(&mut self, delivery: &Delivery) {
        let waiting = key(delivery).and_then(|key| self.active.get_mut(key));
        if let Some(waiting) = waiting {
            waiting.push_back(delivery.seq);
            return;
        }
        if let Some(key) = key(delivery) {
            self.active.insert(key.into(), VecDeque::new());
        }
        self.ready.push_back(delivery.seq);
    }

    /// Takes messages that may be published now; no two of them have the same key.
    pub(super) fn take_ready(&mut self, limit: usize) -> Vec<Seq> {
        self.ready.drain(..limit.min(self.ready.len())).collect()
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Makes a message that was taken ready again. The later messages of its key keep waiting.
    pub(super) fn requeue(&mut self, seq: Seq) {
        self.ready.push_back(seq);
    }

    /// Removes a message that was confirmed or refused. The next message of its key becomes ready.
    pub(super) fn complete(&mut self, delivery: &Delivery) {
        let Some(key) = key(delivery) else { return };
        match self.active.get_mut(key).and_then(VecDeque::pop_front) {
            Some(next) => self.ready.push_back(next),
            None => {
                self.active.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::sync::Arc;

    use super::*;
    use crate::event::{Event, Kind, tests::event};

    /// A message; without a key it is a dead letter.
    fn message(seq: u64, key: Option<u8>) -> Delivery {
        let kind = key.map_or(Kind::Rejected, |_| Kind::Group);
        let conversation = key.unwrap_or_default().to_string().into();
        Delivery {
            seq: Seq(seq),
            event: Arc::new(Event {
                kind,
                conversation,
                ..event(1, "")
            }),
            refusal: None,
            is_resent: false,
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum KeyedStep {
        /// Adds the next message; without a key it is a dead letter.
        Push(Option<u8>),
        Take(usize),
        /// Completes one of the messages in flight.
        Complete(usize),
        /// Requeues one of the messages in flight.
        Requeue(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<KeyedStep>> {
        let step = prop_oneof![
            4 => prop::option::weighted(0.8, 0..4_u8).prop_map(KeyedStep::Push),
            2 => (0..4_usize).prop_map(KeyedStep::Take),
            2 => any::<usize>().prop_map(KeyedStep::Complete),
            1 => any::<usize>().prop_map(KeyedStep::Requeue),
        ];
        prop::collection::vec(step, 1..120)
    }

    /// Whether `seq` may be published: no earlier message of its key is incomplete, or it has no key.
    fn is_next(incomplete: &[(u64, Option<u8>)], seq: u64) -> bool {
        let key = incomplete
            .iter()
            .find(|(other, _)| *other == seq)
            .and_then(|(_, key)| *key);
        let first = incomplete
            .iter()
            .find(|(_, other)| key.is_some() && *other == key);
        first.is_none_or(|(first, _)| *first == seq)
    }

    proptest! {
        /// Whenever messages are added: a message that is taken is always the oldest incomplete one of its key, and
        /// every message that may be published is ready.
        #[test]
        fn only_the_oldest_message_of_each_key_is_ready(steps in steps()) {
            let mut queue = KeyedQueue::default();
            // The incomplete messages, in the order in which they were added.
            let mut incomplete: Vec<(u64, Option<u8>)> = Vec::new();
            let mut in_flight: Vec<Delivery> = Vec::new();
            for (seq, step) in (1..).zip(steps) {
                match step {
                    KeyedStep::Push(key) => {
                        queue.push(&message(seq, key));
                        incomplete.push((seq, key));
                    }
                    KeyedStep::Take(limit) => {
                        let taken = queue.take_ready(limit);
                        prop_assert!(taken.len() <= limit);
                        for seq in taken {
                            prop_assert!(is_next(&incomplete, seq.0), "{seq} of {incomplete:?}");
                            let key = incomplete.iter().find(|(incomplete, _)| *incomplete == seq.0).unwrap().1;
                            in_flight.push(message(seq.0, key));
                        }
                    }
                    KeyedStep::Complete(which) if !in_flight.is_empty() => {
                        let message = in_flight.remove(which % in_flight.len());
                        queue.complete(&message);
                        incomplete.retain(|(seq, _)| *seq != message.seq.0);
                    }
                    KeyedStep::Requeue(which) if !in_flight.is_empty() => {
                        queue.requeue(in_flight.remove(which % in_flight.len()).seq);
                    }
                    KeyedStep::Complete(_) | KeyedStep::Requeue(_) => {}
                }
                let ready = incomplete.iter().filter(|(seq, _)| {
                    is_next(&incomplete, *seq) && in_flight.iter().all(|taken| taken.seq.0 != *seq)
                });
                let ready = ready.count();
                prop_assert_eq!(queue.ready.len(), ready);
                prop_assert_eq!(queue.has_ready(), ready > 0);
            }
        }

        /// Whatever the batch sizes are and whichever messages are requeued, the messages of each key complete in
        /// order.
        #[test]
        fn messages_of_a_key_complete_in_order(
            keys in prop::collection::vec(0..4_u8, 1..60),
            limits in prop::collection::vec(1..5_usize, 200),
            requeue in prop::collection::vec(prop::bool::weighted(0.3), 400),
        ) {
            let mut queue = KeyedQueue::default();
            for (seq, key) in keys.iter().enumerate() {
                queue.push(&message(seq as u64, Some(*key)));
            }
            let mut requeue = requeue.into_iter();
            let mut completed: Vec<(u8, u64)> = Vec::new();
            let key_of = |seq: Seq| keys[usize::try_from(seq.0).unwrap()];
            for limit in limits.into_iter().chain(std::iter::repeat_n(10, 100)) {
                let batch = queue.take_ready(limit);
                let mut keys_in_batch: Vec<_> = batch.iter().map(|seq| key_of(*seq)).collect();
                keys_in_batch.sort_unstable();
                keys_in_batch.dedup();
                prop_assert_eq!(keys_in_batch.len(), batch.len());
                for seq in batch {
                    if requeue.next().unwrap_or(false) {
                        queue.requeue(seq);
                    } else {
                        queue.complete(&message(seq.0, Some(key_of(seq))));
                        completed.push((key_of(seq), seq.0));
                    }
                }
            }
            prop_assert_eq!(completed.len(), keys.len());
            for key in 0..4_u8 {
                let seqs: Vec<u64> = completed.iter().filter(|(other, _)| *other == key).map(|(_, s)| *s).collect();
                prop_assert!(seqs.is_sorted());
            }
            prop_assert!(queue.active.is_empty());
        }
    }
}
