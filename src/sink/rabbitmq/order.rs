//! Order within a conversation: at most one of its messages is under way.

use std::collections::{HashMap, VecDeque};

use super::message::Message;

/// Messages that wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// A key is here while one of its messages is ready or under way, with those behind it.
    busy: HashMap<String, VecDeque<Message>>,
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
            self.busy.insert(key.clone(), VecDeque::new());
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
            key: Some(key.to_string()),
            ..Message::new(&delivery, &Config::default())
        }
    }

    proptest! {
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
                        through.push((message.key.clone().unwrap(), message.seq.0));
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
