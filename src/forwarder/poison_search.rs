//! Finds the event that a broker refuses if the broker only says that some event in flight is refused.
//!
//! librdkafka fails a whole batch because of one record, and RabbitMQ closes the channel. So the window is halved until
//! the refused event is alone in it. That event is then marked poison and becomes a dead letter; once the cursor has
//! passed it, the window is restored.

use std::collections::BTreeMap;

use crate::event::Seq;
use crate::sink::Refusal;

/// The state of the search.
#[derive(Debug, Default)]
pub(super) struct PoisonSearch {
    /// While the search lasts: the size of the window, and the newest event that may be the refused one. The search
    /// ends when the cursor has passed that event.
    bisected: Option<(usize, Option<Seq>)>,
    /// The event that was found. The window is 1 until the cursor has passed it.
    alone: Option<Seq>,
    /// Events that are known to be refused and that the cursor has not passed, including those from earlier sessions.
    poison: BTreeMap<Seq, Refusal>,
}

impl PoisonSearch {
    /// The maximum number of events in flight, at most `whole`.
    pub(super) fn window(&self, whole: usize) -> usize {
        match (self.alone, self.bisected) {
            (Some(_), _) => 1,
            (None, Some((bisected, _))) => bisected.min(whole),
            (None, None) => whole,
        }
    }

    /// The refused event is one of `among` events, none of them after `last`.
    pub(super) fn bisect(&mut self, among: usize, last: Option<Seq>) {
        let last = self
            .bisected
            .map_or(last, |(_, first_last)| first_last.max(last));
        self.bisected = Some(((among / 2).max(1), last));
    }

    /// This event is refused, and no other event was affected.
    pub(super) fn mark_poison(&mut self, seq: Seq, refusal: Refusal) {
        self.poison.insert(seq, refusal);
    }

    /// This event is refused: it was sent alone.
    pub(super) fn mark_poison_alone(&mut self, seq: Seq, refusal: Refusal) {
        self.mark_poison(seq, refusal);
        self.finish_at(seq);
    }

    /// Ends the search at this event, whether or not it becomes a dead letter.
    pub(super) const fn finish_at(&mut self, seq: Seq) {
        self.alone = Some(seq);
    }

    /// Whether an event is known to be refused.
    pub(super) fn is_poison(&self, seq: Seq) -> bool {
        self.poison.contains_key(&seq)
    }

    /// Why an event is refused, if it is known to be.
    pub(super) fn refusal(&self, seq: Seq) -> Option<Refusal> {
        self.poison.get(&seq).cloned()
    }

    /// Every event up to `cursor` is confirmed. Returns true if the search has ended without a poison event: then the
    /// broker refused the batch as a whole, not one of its events.
    pub(super) fn passed(&mut self, cursor: Seq) -> bool {
        self.poison = self.poison.split_off(&cursor.next());
        let passed_found = self.alone.is_some_and(|alone| alone <= cursor);
        // If only the batch was too large, the cursor passes all its events and none is found.
        let passed_all = self.bisected.is_some_and(|(_, last)| last <= Some(cursor));
        if passed_found || passed_all {
            (self.bisected, self.alone) = (None, None);
        }
        passed_all && !passed_found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: usize = 16;

    fn refusal() -> Refusal {
        Refusal {
            reason: "too_large",
            detail: "by a byte".to_owned(),
        }
    }

    fn is_dead_letter(poison_search: &PoisonSearch, seq: u64) -> bool {
        poison_search.refusal(Seq(seq)) == Some(refusal())
    }

    #[test]
    fn bisects_to_one_event_and_restores_the_window_after_it() {
        let mut poison_search = PoisonSearch::default();
        assert_eq!(poison_search.window(WHOLE), 16);
        for (among, half) in [(16, 8), (8, 4), (5, 2), (2, 1), (1, 1)] {
            poison_search.bisect(among, Some(Seq(20)));
            assert_eq!(poison_search.window(WHOLE), half);
        }
        poison_search.mark_poison_alone(Seq(7), refusal());
        assert_eq!(poison_search.window(WHOLE), 1);
        assert!(is_dead_letter(&poison_search, 7) && !is_dead_letter(&poison_search, 8));
        assert!(!poison_search.passed(Seq(6)));
        assert_eq!(poison_search.window(WHOLE), 1);
        assert!(is_dead_letter(&poison_search, 7));
        assert!(!poison_search.passed(Seq(7)), "one was to blame");
        assert_eq!(poison_search.window(WHOLE), 16);
        assert!(!is_dead_letter(&poison_search, 7));
    }

    #[test]
    fn restores_the_window_after_a_batch_without_poison() {
        let mut poison_search = PoisonSearch::default();
        poison_search.bisect(16, Some(Seq(20)));
        // Further bisections keep the highest `last` so far.
        poison_search.bisect(8, Some(Seq(12)));
        assert!(!poison_search.passed(Seq(19)));
        assert_eq!(poison_search.window(WHOLE), 4);
        poison_search.bisect(4, Some(Seq(22)));
        assert!(!poison_search.passed(Seq(21)));
        assert_eq!(poison_search.window(WHOLE), 2);
        assert!(poison_search.passed(Seq(22)), "it was the batch");
        assert_eq!(poison_search.window(WHOLE), 16);
    }

    #[test]
    fn bisecting_never_exceeds_the_full_window() {
        let mut poison_search = PoisonSearch::default();
        poison_search.bisect(100, Some(Seq(1)));
        assert_eq!(poison_search.window(WHOLE), 16);
    }

    #[test]
    fn marked_poison_is_remembered_until_the_cursor_passes_it() {
        let mut poison_search = PoisonSearch::default();
        poison_search.mark_poison(Seq(3), refusal());
        poison_search.mark_poison(Seq(5), refusal());
        assert_eq!(poison_search.window(WHOLE), 16);
        poison_search.passed(Seq(3));
        assert!(!is_dead_letter(&poison_search, 3) && is_dead_letter(&poison_search, 5));
    }
}
