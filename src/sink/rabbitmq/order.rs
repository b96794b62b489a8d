//! Order within a conversation: at most one of its messages is under way.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::message::Message;

/// Messages that wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// A key is here while one of its messages is ready or under way, with those behind it.
    busy: HashMap<Arc<str>, VecDeque<Message>>,
    ready: VecDeque<Message>,
}

impl Order {
    /// Takes a message in, behind all others of its key.
    pub(super) fn push(&mut self, message: Message) {
        let Some(key) = &message.key else {
            self.ready.push_back(message);
            return;
        };
        if let Some(behind) = self.busy.get_mut(key) {
            behind.push_back(message);
        } else {
            self.busy.insert(Arc::clone(key), VecDeque::new());
            self.ready.push_back(message);
        }
    }

    /// Messages that may go now; no two of them have the same key.
    pub(super) fn take_ready(&mut self, limit: usize) -> Vec<Message> {
        self.ready.drain(..limit.min(self.ready.len())).collect()
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Sends a message again that was taken and did not get through: it is still its key's turn.
    pub(super) fn again(&mut self, message: Message) {
        self.ready.push_back(message);
    }

    /// A message got through, or goes elsewhere: the next of its key is ready.
    pub(super) fn done(&mut self, message: &Message) {
        let Some(key) = &message.key else { return };
        match self.busy.get_mut(key).and_then(VecDeque::pop_front) {
            Some(next) => self.ready.push_back(next),
            None => {
                self.busy.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Event, Kind, Seq, Stored};
    use crate::sink::Delivery;
    use crate::sink::rabbitmq::Config;

    fn message(seq: u64, key: u8) -> Message {
        let event = Event {
            kind: Kind::Recalled,
            id: uuid::Uuid::nil(),
            bytes: bytes::Bytes::new(),
        };
        let delivery = Delivery::from(Stored {
            seq: Seq(seq),
            event,
        });
        Message {
            key: Some(key.to_string().into()),
            ..Message::new(&delivery, &Config::default())
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// The next message is taken in; one without a key is a dead letter.
        Push(Option<u8>),
        Take(usize),
        /// One of those under way got through.
        Done(usize),
        /// One of those under way has to go again.
        Again(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => prop::option::weighted(0.8, 0..4_u8).prop_map(Step::Push),
            2 => (0..4_usize).prop_map(Step::Take),
            2 => any::<usize>().prop_map(Step::Done),
            1 => any::<usize>().prop_map(Step::Again),
        ];
        prop::collection::vec(step, 1..120)
    }

    /// Whether `seq` may go: nothing before it of the same key is anywhere, or it has no key.
    fn is_next(open: &[(u64, Option<u8>)], seq: u64) -> bool {
        let key = open
            .iter()
            .find(|(other, _)| *other == seq)
            .and_then(|(_, key)| *key);
        let first = open
            .iter()
            .find(|(_, other)| key.is_some() && *other == key);
        first.is_none_or(|(first, _)| *first == seq)
    }

    proptest! {
        /// With messages coming in under way: what is taken is always the oldest of its key that did not
        /// get through, and whatever may go is ready.
        #[test]
        fn the_oldest_of_each_key_is_ready_and_no_other(steps in steps()) {
            let mut order = Order::default();
            // What was taken in and did not get through, in its order.
            let mut open: Vec<(u64, Option<u8>)> = Vec::new();
            let mut under_way: Vec<Message> = Vec::new();
            for (seq, step) in (1..).zip(steps) {
                match step {
                    Step::Push(key) => {
                        let message = message(seq, key.unwrap_or_default());
                        order.push(match key {
                            Some(_) => message,
                            None => Message { key: None, ..message },
                        });
                        open.push((seq, key));
                    }
                    Step::Take(limit) => {
                        let taken = order.take_ready(limit);
                        prop_assert!(taken.len() <= limit);
                        for message in taken {
                            prop_assert!(is_next(&open, message.seq.0), "{} of {open:?}", message.seq);
                            under_way.push(message);
                        }
                    }
                    Step::Done(which) if !under_way.is_empty() => {
                        let message = under_way.remove(which % under_way.len());
                        order.done(&message);
                        open.retain(|(seq, _)| *seq != message.seq.0);
                    }
                    Step::Again(which) if !under_way.is_empty() => {
                        order.again(under_way.remove(which % under_way.len()));
                    }
                    Step::Done(_) | Step::Again(_) => {}
                }
                let ready = open.iter().filter(|(seq, _)| {
                    is_next(&open, *seq) && under_way.iter().all(|taken| taken.seq.0 != *seq)
                });
                let ready = ready.count();
                prop_assert_eq!(order.ready.len(), ready);
                prop_assert_eq!(order.has_ready(), ready > 0);
            }
        }

        /// However rounds are cut and whatever has to go again, each key's messages get through in order.
        #[test]
        fn keys_keep_their_order(
            keys in prop::collection::vec(0..4_u8, 1..60),
            limits in prop::collection::vec(1..5_usize, 200),
            again in prop::collection::vec(prop::bool::weighted(0.3), 400),
        ) {
            let mut order = Order::default();
            for (seq, key) in keys.iter().enumerate() {
                order.push(message(seq as u64, *key));
            }
            let mut again = again.into_iter();
            let mut through: Vec<(String, u64)> = Vec::new();
            for limit in limits.into_iter().chain(std::iter::repeat_n(10, 100)) {
                let round = order.take_ready(limit);
                let mut in_round: Vec<_> = round.iter().filter_map(|m| m.key.clone()).collect();
                in_round.sort();
                in_round.dedup();
                prop_assert_eq!(in_round.len(), round.len());
                for message in round {
                    if again.next().unwrap_or(false) {
                        order.again(message);
                    } else {
                        order.done(&message);
                        through.push((message.key.clone().unwrap().to_string(), message.seq.0));
                    }
                }
            }
            prop_assert_eq!(through.len(), keys.len());
            for key in 0..4_u8 {
                let seqs: Vec<u64> = through.iter().filter(|(k, _)| *k == key.to_string()).map(|(_, s)| *s).collect();
                prop_assert!(seqs.is_sorted());
            }
            prop_assert!(order.busy.is_empty());
        }
    }
}
