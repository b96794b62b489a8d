//! The ids of the latest events: how a repeated callback is recognised.

use std::collections::{HashSet, VecDeque};

use uuid::Uuid;

/// A bounded window of ids; the oldest go first.
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

    pub(super) fn insert(&mut self, id: Uuid) {
        if self.capacity == 0 || !self.ids.insert(id) {
            return;
        }
        if self.order.len() == self.capacity
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        self.order.push_back(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_ids_are_forgotten_first() {
        let mut recent = RecentIds::new(2);
        let ids = [1, 2, 3].map(Uuid::from_u128);
        for id in ids {
            recent.insert(id);
        }
        assert_eq!(ids.map(|id| recent.contains(&id)), [false, true, true]);
    }

    #[test]
    fn an_empty_window_remembers_nothing() {
        let mut recent = RecentIds::new(0);
        recent.insert(Uuid::nil());
        assert!(!recent.contains(&Uuid::nil()));
    }
}
