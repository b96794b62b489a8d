//! Numbers that no event has, so that a reader can tell them from events that it does not find.

use rusqlite::{Connection, params};

use crate::event::Seq;

/// Numbers one after the other that no event has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::spool) struct Gap {
    pub(in crate::spool) first: Seq,
    pub(in crate::spool) last: Seq,
    /// Whether these events were kept once.
    pub(in crate::spool) lost: bool,
}

impl Gap {
    pub(in crate::spool) fn insert(self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached("INSERT INTO gaps (first_seq, last_seq, lost) VALUES (?1, ?2, ?3)")?
            .execute(params![self.first.0, self.last.0, self.lost])
            .map(|_| ())
    }
}

/// What is known of the numbers that were given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::spool) struct Known {
    /// Every sink has confirmed all up to here: what is missing of them was deleted, or is not missed.
    pub(in crate::spool) confirmed: Seq,
    /// All up to here were committed; later ones may never have been.
    pub(in crate::spool) committed: Seq,
}

/// Finds the gaps after `from` between numbers that are met in ascending order.
#[derive(Debug)]
pub(in crate::spool) struct Gaps {
    known: Known,
    next: Seq,
}

impl Gaps {
    pub(in crate::spool) const fn new(from: Seq, known: Known) -> Self {
        Self {
            known,
            next: from.next(),
        }
    }

    /// These numbers are known, an event's or of a gap: the gaps before them.
    pub(in crate::spool) fn meet(&mut self, first: Seq, last: Seq) -> Vec<Gap> {
        let gaps = self.up_to(Seq(first.0.saturating_sub(1)));
        self.next = self.next.max(last.next());
        gaps
    }

    /// No more events come: the gaps up to the last number that was committed.
    pub(in crate::spool) fn end(mut self) -> Vec<Gap> {
        self.up_to(self.known.committed)
    }

    /// The gap up to `last`, in up to three parts: confirmed, lost, never committed.
    fn up_to(&mut self, last: Seq) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for (limit, lost) in [
            (self.known.confirmed.min(last), false),
            (self.known.committed.min(last), true),
            (last, false),
        ] {
            if self.next <= limit {
                gaps.push(Gap {
                    first: self.next,
                    last: limit,
                    lost,
                });
                self.next = limit.next();
            }
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(from: u64, confirmed: u64, committed: u64, met: &[u64]) -> Vec<(u64, u64, bool)> {
        let known = Known {
            confirmed: Seq(confirmed),
            committed: Seq(committed),
        };
        let mut finder = Gaps::new(Seq(from), known);
        let mut found: Vec<Gap> = met
            .iter()
            .flat_map(|seq| finder.meet(Seq(*seq), Seq(*seq)))
            .collect();
        found.extend(finder.end());
        let of = |gap: Gap| (gap.first.0, gap.last.0, gap.lost);
        found.into_iter().map(of).collect()
    }

    #[test]
    fn what_was_committed_and_not_confirmed_is_lost() {
        assert_eq!(gaps(3, 3, 6, &[4, 5, 6]), []);
        assert_eq!(gaps(3, 3, 9, &[5, 6]), [(4, 4, true), (7, 9, true)]);
        assert_eq!(
            gaps(0, 2, 4, &[6]),
            [(1, 2, false), (3, 4, true), (5, 5, false)]
        );
        assert_eq!(gaps(0, 0, 3, &[]), [(1, 3, true)]);
        assert_eq!(gaps(9, 2, 3, &[10]), []);
    }
}
