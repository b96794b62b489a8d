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
pub(super) struct Suspects {
    /// The window's size until an event has passed.
    narrowed: Option<(usize, Option<Seq>)>,
    /// It is sent alone until it has passed.
    alone: Option<Seq>,
    /// What is known to be refused and has not passed, also by an earlier session.
    condemned: BTreeMap<Seq, Refusal>,
}

impl Suspects {
    /// How many events may be in flight, of at most `whole`.
    pub(super) fn window(&self, whole: usize) -> usize {
        match (self.alone, self.narrowed) {
            (Some(_), _) => 1,
            (None, Some((narrowed, _))) => narrowed.min(whole),
            (None, None) => whole,
        }
    }

    /// The refused event is one of `among`, none of them after `last`.
    pub(super) fn narrow(&mut self, among: usize, last: Option<Seq>) {
        let last = self
            .narrowed
            .map_or(last, |(_, first_last)| first_last.max(last));
        self.narrowed = Some(((among / 2).max(1), last));
    }

    /// It is this one, and nothing else was touched by that.
    pub(super) fn condemn(&mut self, seq: Seq, refusal: Refusal) {
        self.condemned.insert(seq, refusal);
    }

    /// It is this one, found by sending it alone.
    pub(super) fn condemn_alone(&mut self, seq: Seq, refusal: Refusal) {
        self.condemn(seq, refusal);
        self.found(seq);
    }

    /// It is this one, whatever becomes of it.
    pub(super) const fn found(&mut self, seq: Seq) {
        self.alone = Some(seq);
    }

    /// Whether an event is known to be refused.
    pub(super) fn is_condemned(&self, seq: Seq) -> bool {
        self.condemned.contains_key(&seq)
    }

    /// Why an event is known to be refused, if it is.
    pub(super) fn refusal(&self, seq: Seq) -> Option<Refusal> {
        self.condemned.get(&seq).cloned()
    }

    /// Everything up to `cursor` is confirmed. Returns whether the search has ended and none was to blame:
    /// then it was a batch as a whole that the broker did not take.
    pub(super) fn passed(&mut self, cursor: Seq) -> bool {
        self.condemned = self.condemned.split_off(&cursor.next());
        let found = self.alone.is_some_and(|alone| alone <= cursor);
        // Where only a batch was too large, none is found.
        let none = self.narrowed.is_some_and(|(_, last)| last <= Some(cursor));
        if found || none {
            (self.narrowed, self.alone) = (None, None);
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

    fn is_letter(suspects: &Suspects, seq: u64) -> bool {
        suspects.refusal(Seq(seq)) == Some(refusal())
    }

    #[test]
    fn the_window_is_halved_until_one_is_alone_and_whole_again_once_that_has_passed() {
        let mut suspects = Suspects::default();
        assert_eq!(suspects.window(WHOLE), 16);
        for (among, half) in [(16, 8), (8, 4), (5, 2), (2, 1), (1, 1)] {
            suspects.narrow(among, Some(Seq(20)));
            assert_eq!(suspects.window(WHOLE), half);
        }
        suspects.condemn_alone(Seq(7), refusal());
        assert_eq!(suspects.window(WHOLE), 1);
        assert!(is_letter(&suspects, 7) && !is_letter(&suspects, 8));
        assert!(!suspects.passed(Seq(6)));
        assert_eq!(suspects.window(WHOLE), 1);
        assert!(is_letter(&suspects, 7));
        assert!(!suspects.passed(Seq(7)), "one was to blame");
        assert_eq!(suspects.window(WHOLE), 16);
        assert!(!is_letter(&suspects, 7));
    }

    #[test]
    fn where_only_a_batch_was_too_large_the_window_is_whole_once_all_of_it_has_passed() {
        let mut suspects = Suspects::default();
        suspects.narrow(16, Some(Seq(20)));
        // Narrowed further, it still is one of the first: a later last is looked out for too.
        suspects.narrow(8, Some(Seq(12)));
        assert!(!suspects.passed(Seq(19)));
        assert_eq!(suspects.window(WHOLE), 4);
        suspects.narrow(4, Some(Seq(22)));
        assert!(!suspects.passed(Seq(21)));
        assert_eq!(suspects.window(WHOLE), 2);
        assert!(suspects.passed(Seq(22)), "it was the batch");
        assert_eq!(suspects.window(WHOLE), 16);
    }

    #[test]
    fn a_window_is_never_larger_than_the_whole() {
        let mut suspects = Suspects::default();
        suspects.narrow(100, Some(Seq(1)));
        assert_eq!(suspects.window(WHOLE), 16);
    }

    #[test]
    fn one_of_several_that_are_refused_by_name_is_known_until_it_has_passed() {
        let mut suspects = Suspects::default();
        suspects.condemn(Seq(3), refusal());
        suspects.condemn(Seq(5), refusal());
        assert_eq!(suspects.window(WHOLE), 16);
        suspects.passed(Seq(3));
        assert!(!is_letter(&suspects, 3) && is_letter(&suspects, 5));
    }
}
