//! Finding out which event a broker refuses, when it only says that some event in flight is.
//!
//! librdkafka fails a whole batch for one record, and RabbitMQ closes the channel. So the window is
//! halved until the refused event is alone in it; from then on it is marked for the dead letters, and
//! once it has passed the window is whole again.

use std::collections::BTreeMap;

use crate::event::Seq;
use crate::sink::Refusal;

/// What is known of a refused event.
#[derive(Debug, Default)]
pub(super) struct PoisonSearch {
    /// The window's size until an event has passed.
    bisected: Option<(usize, Option<Seq>)>,
    /// It is sent alone until it has passed.
    alone: Option<Seq>,
    /// What is known to be refused and has not passed, also by an earlier session.
    poison: BTreeMap<Seq, Refusal>,
}

impl PoisonSearch {
    /// How many events may be in flight, of at most `whole`.
    pub(super) fn window(&self, whole: usize) -> usize {
        match (self.alone, self.bisected) {
            (Some(_), _) => 1,
            (None, Some((bisected, _))) => bisected.min(whole),
            (None, None) => whole,
        }
    }

    /// The refused event is one of `among`, none of them after `last`.
    pub(super) fn bisect(&mut self, among: usize, last: Option<Seq>) {
        let last = self
            .bisected
            .map_or(last, |(_, first_last)| first_last.max(last));
        self.bisected = Some(((among / 2).max(1), last));
    }

    /// It is this one, and nothing else was touched by that.
    pub(super) fn mark_poison(&mut self, seq: Seq, refusal: Refusal) {
        self.poison.insert(seq, refusal);
    }

    /// It is this one, found by sending it alone.
    pub(super) fn mark_poison_alone(&mut self, seq: Seq, refusal: Refusal) {
        self.mark_poison(seq, refusal);
        self.found(seq);
    }

    /// It is this one, whatever becomes of it.
    pub(super) const fn found(&mut self, seq: Seq) {
        self.alone = Some(seq);
    }

    /// Whether an event is known to be refused.
    pub(super) fn is_poison(&self, seq: Seq) -> bool {
        self.poison.contains_key(&seq)
    }

    /// Why an event is known to be refused, if it is.
    pub(super) fn refusal(&self, seq: Seq) -> Option<Refusal> {
        self.poison.get(&seq).cloned()
    }

    /// Everything up to `cursor` is confirmed. Returns whether the search has ended and none was to blame:
    /// then it was a batch as a whole that the broker did not take.
    pub(super) fn passed(&mut self, cursor: Seq) -> bool {
        self.poison = self.poison.split_off(&cursor.next());
        let found = self.alone.is_some_and(|alone| alone <= cursor);
        // Where only a batch was too large, none is found.
        let none = self.bisected.is_some_and(|(_, last)| last <= Some(cursor));
        if found || none {
            (self.bisected, self.alone) = (None, None);
        }
        none && !found
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

    fn is_letter(poison_search: &PoisonSearch, seq: u64) -> bool {
        poison_search.refusal(Seq(seq)) == Some(refusal())
    }

    #[test]
    fn the_window_is_halved_until_one_is_alone_and_whole_again_once_that_has_passed() {
        let mut poison_search = PoisonSearch::default();
        assert_eq!(poison_search.window(WHOLE), 16);
        for (among, half) in [(16, 8), (8, 4), (5, 2), (2, 1), (1, 1)] {
            poison_search.bisect(among, Some(Seq(20)));
            assert_eq!(poison_search.window(WHOLE), half);
        }
        poison_search.mark_poison_alone(Seq(7), refusal());
        assert_eq!(poison_search.window(WHOLE), 1);
        assert!(is_letter(&poison_search, 7) && !is_letter(&poison_search, 8));
        assert!(!poison_search.passed(Seq(6)));
        assert_eq!(poison_search.window(WHOLE), 1);
        assert!(is_letter(&poison_search, 7));
        assert!(!poison_search.passed(Seq(7)), "one was to blame");
        assert_eq!(poison_search.window(WHOLE), 16);
        assert!(!is_letter(&poison_search, 7));
    }

    #[test]
    fn where_only_a_batch_was_too_large_the_window_is_whole_once_all_of_it_has_passed() {
        let mut poison_search = PoisonSearch::default();
        poison_search.bisect(16, Some(Seq(20)));
        // Narrowed further, it still is one of the first: a later last is looked out for too.
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
    fn a_window_is_never_larger_than_the_whole() {
        let mut poison_search = PoisonSearch::default();
        poison_search.bisect(100, Some(Seq(1)));
        assert_eq!(poison_search.window(WHOLE), 16);
    }

    #[test]
    fn one_of_several_that_are_refused_by_name_is_known_until_it_has_passed() {
        let mut poison_search = PoisonSearch::default();
        poison_search.mark_poison(Seq(3), refusal());
        poison_search.mark_poison(Seq(5), refusal());
        assert_eq!(poison_search.window(WHOLE), 16);
        poison_search.passed(Seq(3));
        assert!(!is_letter(&poison_search, 3) && is_letter(&poison_search, 5));
    }
}
