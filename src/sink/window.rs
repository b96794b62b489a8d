//! The events in flight, and the cursor over the contiguous confirmed prefix.

use std::collections::{BTreeSet, VecDeque};

use super::delivery::Delivery;
use crate::event::Seq;

/// Events passed to a session, in the spool's order. The forwarder owns them; a session keeps only their numbers and
/// looks them up here.
///
/// The window outlives a session: an event that was confirmed ahead of the cursor is not published again by the next
/// session. This keeps the order per key, because a sink confirms the events of a key in order.
#[derive(Debug, Default)]
pub struct Window {
    slots: VecDeque<Slot>,
    /// The total size of the events in flight.
    bytes: usize,
    /// Events after the cursor that an earlier session confirmed. They are not published again.
    ahead: BTreeSet<Seq>,
}

#[derive(Debug)]
struct Slot {
    seq: Seq,
    /// None if the event is confirmed.
    in_flight: Option<Delivery>,
}

impl Window {
    /// How many more events fit: `size` minus the events in the window, or 0 if `bytes` or more are in flight.
    pub(crate) fn capacity(&self, size: usize, bytes: usize) -> usize {
        if self.bytes >= bytes {
            0
        } else {
            size.saturating_sub(self.slots.len())
        }
    }

    /// The newest event in the window.
    pub(crate) fn last(&self) -> Option<Seq> {
        self.slots.back().map(|slot| slot.seq)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Adds an event. Returns whether it must be published.
    pub(crate) fn admit(&mut self, delivery: Delivery) -> bool {
        let seq = delivery.seq;
        let in_flight = !self.ahead.remove(&seq);
        if in_flight {
            self.bytes += delivery.event.body.len();
        }
        self.slots.push_back(Slot {
            seq,
            in_flight: in_flight.then_some(delivery),
        });
        in_flight
    }

    /// Skips an event that cannot be read.
    pub(crate) fn skip_unreadable(&mut self, seq: Seq) {
        self.ahead.remove(&seq);
        self.slots.push_back(Slot {
            seq,
            in_flight: None,
        });
    }

    /// Marks events as confirmed. Returns how many were unconfirmed.
    pub(crate) fn confirm(&mut self, seqs: &[Seq]) -> u64 {
        let mut confirmed = 0;
        for seq in seqs {
            if let Some(delivery) = self.slot(*seq).and_then(|slot| slot.in_flight.take()) {
                self.bytes -= delivery.event.body.len();
                confirmed += 1;
            }
        }
        confirmed
    }

    /// Removes the confirmed prefix. Returns its last event.
    pub(crate) fn advance(&mut self) -> Option<Seq> {
        let mut last = None;
        while self
            .slots
            .front()
            .is_some_and(|slot| slot.in_flight.is_none())
        {
            last = self.slots.pop_front().map(|slot| slot.seq);
        }
        last
    }

    /// The unconfirmed events.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = &Delivery> {
        self.slots.iter().filter_map(|slot| slot.in_flight.as_ref())
    }

    /// An event that is in flight.
    #[must_use]
    pub fn delivery(&self, seq: Seq) -> Option<&Delivery> {
        let index = self.index(seq)?;
        self.slots.get(index)?.in_flight.as_ref()
    }

    /// Replaces the delivery with the same number.
    pub(crate) fn replace(&mut self, delivery: Delivery) {
        if let Some(slot) = self.slot(delivery.seq) {
            slot.in_flight = Some(delivery);
        }
    }

    /// Drops the events in flight: they will be read again.
    pub(crate) fn restart(&mut self) {
        self.bytes = 0;
        for slot in self.slots.drain(..) {
            if slot.in_flight.is_none() {
                self.ahead.insert(slot.seq);
            }
        }
    }

    /// Forgets confirmed events up to this one: they will not be read again.
    pub(crate) fn forget(&mut self, seq: Seq) {
        self.ahead = self.ahead.split_off(&seq.next());
    }

    /// Forgets which events an earlier session confirmed: they are published again if they are read again.
    pub(crate) fn forget_confirmed(&mut self) {
        self.ahead.clear();
    }

    fn slot(&mut self, seq: Seq) -> Option<&mut Slot> {
        let index = self.index(seq)?;
        self.slots.get_mut(index)
    }

    fn index(&self, seq: Seq) -> Option<usize> {
        self.slots.binary_search_by_key(&seq, |slot| slot.seq).ok()
    }
}

#[cfg(test)]
mod tests;
