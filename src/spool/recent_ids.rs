//! The ids of the latest events, to recognise a repeated callback.

use std::collections::{HashSet, VecDeque};
use std::ops::RangeBounds;

use uuid::Uuid;

/// A window of ids; the oldest are removed first. It may exceed its capacity while a group is appended.
#[derive(Debug)]
pub(super) struct RecentIds {
    capacity: usize,
    order: VecDeque<Uuid>,
    ids: HashSet<Uuid>,
}

impl RecentIds {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            order: VecDeque::new(),
            ids: HashSet::new(),
        }
    }

    pub(super) fn contains(&self, id: &Uuid) -> bool {
        self.ids.contains(id)
    }

    /// Adds an id; returns false if it was present.
    pub(super) fn insert(&mut self, id: Uuid) -> bool {
        if self.capacity == 0 {
            return true;
        }
        let is_new = self.ids.insert(id);
        if is_new {
            self.order.push_back(id);
        }
        is_new
    }

    /// Removes the `newest` ids, those of a group that was not committed.
    pub(super) fn take_back(&mut self, newest: usize) {
        self.forget(self.order.len().saturating_sub(newest)..);
    }

    /// Removes the oldest ids that exceed the capacity.
    pub(super) fn trim(&mut self) {
        self.forget(..self.order.len().saturating_sub(self.capacity));
    }

    fn forget(&mut self, places: impl RangeBounds<usize>) {
        for id in self.order.drain(places) {
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
        assert_eq!(IDS.map(|id| recent.insert(id)), [true; 3]);
        recent
    }

    #[test]
    fn trim_removes_the_oldest_ids() {
        let mut recent = recent(2);
        assert!(!recent.insert(IDS[0]), "not before they are too many");
        recent.trim();
        assert_eq!(IDS.map(|id| recent.contains(&id)), [false, true, true]);
        assert_eq!(IDS.map(|id| recent.insert(id)), [true, false, false]);
    }

    #[test]
    fn take_back_forgets_uncommitted_ids() {
        let mut recent = recent(10);
        recent.take_back(2);
        assert_eq!(IDS.map(|id| recent.contains(&id)), [true, false, false]);
        assert_eq!(IDS.map(|id| recent.insert(id)), [false, true, true]);
    }

    #[test]
    fn a_capacity_of_zero_remembers_nothing() {
        let mut recent = recent(0);
        assert!(IDS.iter().all(|id| !recent.contains(id)));
        recent.take_back(3);
        assert!(recent.insert(IDS[0]));
    }
}
