//! The ids of the latest events, to recognise a repeated callback.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::RangeBounds;

use uuid::Uuid;

use crate::event::Seq;

/// A window of ids; the oldest are removed first. It may exceed its capacity while a group is appended.
#[derive(Debug)]
pub(super) struct RecentIds {
    capacity: usize,
    order: VecDeque<Uuid>,
    ids: HashMap<Uuid, Seq>,
}

impl RecentIds {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            order: VecDeque::new(),
            ids: HashMap::new(),
        }
    }

    /// The number of the event that has this id.
    pub(super) fn find(&self, id: &Uuid) -> Option<Seq> {
        self.ids.get(id).copied()
    }

    /// Adds the id of an event, unless it is present.
    pub(super) fn insert(&mut self, id: Uuid, seq: Seq) {
        if self.capacity == 0 {
            return;
        }
        if let Entry::Vacant(vacant) = self.ids.entry(id) {
            vacant.insert(seq);
            self.order.push_back(id);
        }
    }

    /// Removes the newest `count` ids: those of a group that was not committed.
    pub(super) fn roll_back(&mut self, count: usize) {
        self.remove(self.order.len().saturating_sub(count)..);
    }

    /// Removes the oldest ids that exceed the capacity.
    pub(super) fn trim(&mut self) {
        self.remove(..self.order.len().saturating_sub(self.capacity));
    }

    fn remove(&mut self, range: impl RangeBounds<usize>) {
        for id in self.order.drain(range) {
            self.ids.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [Uuid; 3] = [Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3)];

    fn recent(capacity: usize) -> RecentIds {
        let mut recent = RecentIds::new(capacity);
        insert_all(&mut recent);
        recent
    }

    /// Inserts all; returns which were not present.
    fn insert_all(recent: &mut RecentIds) -> [bool; 3] {
        let mut number = 0;
        IDS.map(|id| {
            number += 1;
            let is_new = recent.find(&id).is_none();
            recent.insert(id, Seq(number));
            is_new
        })
    }

    fn known(recent: &RecentIds) -> [bool; 3] {
        IDS.map(|id| recent.find(&id).is_some())
    }

    #[test]
    fn trim_removes_the_oldest_ids() {
        let mut recent = recent(2);
        assert_eq!(known(&recent), [true; 3], "not before they are too many");
        recent.trim();
        assert_eq!(known(&recent), [false, true, true]);
        assert_eq!(insert_all(&mut recent), [true, false, false]);
        assert_eq!(recent.find(&IDS[1]), Some(Seq(2)), "the first number stays");
    }

    #[test]
    fn roll_back_forgets_uncommitted_ids() {
        let mut recent = recent(10);
        recent.roll_back(2);
        assert_eq!(known(&recent), [true, false, false]);
        assert_eq!(insert_all(&mut recent), [false, true, true]);
    }

    #[test]
    fn a_capacity_of_zero_remembers_nothing() {
        let mut recent = recent(0);
        assert_eq!(known(&recent), [false; 3]);
        recent.roll_back(3);
        assert_eq!(insert_all(&mut recent), [true; 3]);
    }
}
