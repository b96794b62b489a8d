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
    fn roll_back_forgets_uncommitted_ids() {
        let mut recent = recent(10);
        recent.roll_back(2);
        assert_eq!(IDS.map(|id| recent.contains(&id)), [true, false, false]);
        assert_eq!(IDS.map(|id| recent.insert(id)), [false, true, true]);
    }

    #[test]
    fn a_capacity_of_zero_remembers_nothing() {
        let mut recent = recent(0);
        assert!(IDS.iter().all(|id| !recent.contains(id)));
        recent.roll_back(3);
        assert!(recent.insert(IDS[0]));
    }
}
