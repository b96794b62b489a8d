//! The oldest events, which leave the file once they are forwarded: when, how many, and with whom.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Store, classify};
use crate::event::{Millis, Seq};
use crate::spool::schema::PAGE_SIZE;
use crate::spool::{AppendError, Cursor, room};

/// Rows that are deleted in one transaction: few enough that nobody waits long for it, and fewer where the
/// disk has no room for the pages that this writes to the log.
const DELETE_AT_ONCE: u64 = 1000;
const DELETE_AT_LEAST: u64 = 8;

/// Rows that are deleted together with an insert, at least: fewer would have it write more pages than they free.
const LEAVE_WITH_OTHERS: u64 = 64;

/// The oldest events, which leave the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaving {
    first: u64,
    last: u64,
    /// The first number whose id is still to be recognised.
    recent_from: u64,
}

impl Leaving {
    /// The oldest event that stays, or the next to come.
    pub(super) const fn first_after(self) -> Seq {
        Seq(self.last + 1)
    }

    /// Deletes them; ids that are to be recognised stay. Some may be there already: of events that had left, and that a
    /// start has put back.
    pub(super) fn delete(self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO recent_ids SELECT seq, id FROM events
                 WHERE seq BETWEEN max(?1, ?2) AND ?3",
            )?
            .execute([self.first, self.recent_from, self.last])?;
        connection
            .prepare_cached("DELETE FROM events WHERE seq <= ?1")?
            .execute([self.last])?;
        connection
            .prepare_cached("DELETE FROM recent_ids WHERE seq < ?1")?
            .execute([self.recent_from])
            .map(|_| ())
    }
}

impl Store {
    /// Deletes the oldest forwarded events whose retention is over, a bounded number at once. Returns
    /// whether any went.
    pub(in crate::spool) fn expire(
        &mut self,
        cursors: &BTreeMap<String, Cursor>,
    ) -> Result<bool, AppendError> {
        self.delete_forwarded(cursors, Some(self.cutoff()))
    }

    /// Those that leave in the commit of `coming` others, as many or a few more: the pages that they empty take
    /// the others, and are written once. None where only few may leave.
    pub(super) fn leaving_with(
        &self,
        coming: usize,
        cursors: &BTreeMap<String, Cursor>,
    ) -> Option<Leaving> {
        let counts = LEAVE_WITH_OTHERS..=LEAVE_WITH_OTHERS.max(coming as u64);
        // What cannot be read is told by the upkeep, which reads it, too.
        self.leaving(cursors, Some(self.cutoff()), counts).ok()?
    }

    /// Unix milliseconds: the retention of what was appended later is not over.
    fn cutoff(&self) -> i64 {
        let retention = i64::try_from(self.config.retention.0.as_millis()).unwrap_or(i64::MAX);
        Millis::now().as_millis().saturating_sub(retention)
    }

    /// The oldest events, where they are forwarded and not appended after `cutoff`: so many, or none.
    fn leaving(
        &self,
        cursors: &BTreeMap<String, Cursor>,
        cutoff: Option<i64>,
        counts: RangeInclusive<u64>,
    ) -> Result<Option<Leaving>, AppendError> {
        let first = self.first.0;
        let enough = |last: u64| last + 1 >= first + counts.start();
        let mut last = self.forwarded(cursors).0.min(first + counts.end() - 1);
        if let Some(cutoff) = cutoff.filter(|_| enough(last)) {
            let young: Option<u64> = self
                .connection
                .prepare_cached(
                    "SELECT seq FROM events WHERE seq BETWEEN ?1 AND ?2 AND appended_at > ?3
                     ORDER BY seq LIMIT 1",
                )
                .and_then(|mut young| {
                    young
                        .query_row(params![first, last, cutoff], |row| row.get(0))
                        .optional()
                })
                .map_err(|error| classify(&error))?;
            last = young.map_or(last, |young| young - 1);
        }
        let recent_from = self.next.0.saturating_sub(self.config.recent_ids as u64);
        Ok(enough(last).then_some(Leaving {
            first,
            last,
            recent_from,
        }))
    }

    /// Deletes the oldest forwarded events, those appended after `cutoff` excepted.
    pub(super) fn delete_forwarded(
        &mut self,
        cursors: &BTreeMap<String, Cursor>,
        cutoff: Option<i64>,
    ) -> Result<bool, AppendError> {
        let at_most = deleted_at_once(room::free_disk(&self.config));
        let Some(leaving) = self.leaving(cursors, cutoff, 1..=at_most)? else {
            return Ok(false);
        };
        let next = self.next.0;
        self.unsynced(|store| {
            store.transaction(|connection| {
                leaving.delete(connection)?;
                connection
                    .prepare_cached("DELETE FROM gaps WHERE last_seq <= ?1 AND NOT lost")?
                    .execute([leaving.last])?;
                connection
                    .prepare_cached("UPDATE identity SET next_seq = ?1")?
                    .execute([next])
                    .map(|_| ())
            })
        })?;
        self.first = leaving.first_after();
        Ok(true)
    }

    /// The newest event that every sink which counts has confirmed. A sink that is not configured any
    /// more counts if it had not confirmed everything when it was missed.
    pub(super) fn forwarded(&self, cursors: &BTreeMap<String, Cursor>) -> Seq {
        let orphans = self
            .saved_cursors
            .iter()
            .filter(|(sink, cursor)| cursor.holds && !cursors.contains_key(*sink))
            .map(|(_, cursor)| cursor.seq);
        let configured = cursors.values().map(Cursor::position);
        let lowest = configured.chain(orphans).min();
        lowest.map_or(self.last, |lowest| lowest.min(self.last))
    }
}

/// How many rows one transaction deletes, for the free bytes of the disk.
fn deleted_at_once(free_disk: u64) -> u64 {
    let pages = free_disk / PAGE_SIZE as u64;
    (pages / 2).clamp(DELETE_AT_LEAST, DELETE_AT_ONCE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::setting::Period;
    use crate::spool::room::Usage;
    use crate::spool::store::tests::{cursors, events};
    use crate::spool::tests::config;
    use crate::spool::{Appended, Config, files};

    fn without_retention(folder: &TempDir) -> Store {
        Store::open(&Config {
            retention: Period(Duration::ZERO),
            ..config(folder)
        })
        .unwrap()
    }

    /// Who appends waits for no more than that.
    #[test]
    fn what_is_over_leaves_a_thousand_at_once() {
        let folder = TempDir::new().unwrap();
        let mut store = without_retention(&folder);
        let cursors = cursors(2400);
        store.append(&events(1..=2500, 0), &cursors).unwrap();
        for first in [1001, 2001, 2401] {
            assert_eq!(store.expire(&cursors), Ok(true));
            assert_eq!(store.first(), Seq(first));
        }
        assert_eq!(store.expire(&cursors), Ok(false));
    }

    /// The oldest event kept, after `coming` more were appended when so many had been forwarded.
    fn first_after(store: &mut Store, forwarded: u64, coming: u64) -> u64 {
        let next = u128::from(store.next.0);
        let coming = events(next..next + u128::from(coming), 1000);
        store.append(&coming, &cursors(forwarded)).unwrap();
        store.first().0
    }

    #[test]
    fn as_many_leave_as_come_and_few_do_not() {
        let folder = TempDir::new().unwrap();
        let mut store = without_retention(&folder);
        for (forwarded, coming, first) in [
            (0, 1000, 1),
            (63, 100, 1),
            (64, 1, 65),
            (1000, 1, 129),
            (1000, 100, 229),
            (291, 1, 229),
            (300, 100, 301),
        ] {
            assert_eq!(first_after(&mut store, forwarded, coming), first);
        }
        store.config.retention = Period(Duration::from_secs(3600));
        assert_eq!(first_after(&mut store, 1000, 100), 301);
    }

    /// Those are written once, where they would be written twice in commits of their own.
    #[test]
    fn who_comes_takes_the_pages_of_who_leaves() {
        let folder = TempDir::new().unwrap();
        let mut store = without_retention(&folder);
        let mut written = |forwarded| {
            assert_eq!(store.checkpoint_all(), Ok(true));
            let first = first_after(&mut store, forwarded, 100);
            assert_eq!(first, forwarded + 1);
            files::log_size(&store.config.path)
        };
        written(0);
        let alone = written(0);
        let together = written(100);
        assert!(together < alone * 5 / 4, "{together} of {alone}");
    }

    #[test]
    fn what_cannot_leave_keeps_nothing_out() {
        let folder = TempDir::new().unwrap();
        let mut store = without_retention(&folder);
        first_after(&mut store, 0, 100);
        let refuse =
            "CREATE TRIGGER refuse BEFORE DELETE ON events BEGIN SELECT raise(ABORT, 'no'); END";
        store.connection.execute_batch(refuse).unwrap();
        assert_eq!(first_after(&mut store, 100, 1), 1);
        assert_eq!(store.last(), Seq(101));
        store.expire(&cursors(100)).unwrap_err();
    }

    #[test]
    fn an_event_that_came_back_leaves_again() {
        let folder = TempDir::new().unwrap();
        let mut store = without_retention(&folder);
        let again = |store: &Store| {
            let copy = "INSERT INTO recent_ids SELECT seq, id FROM events";
            store.connection.execute(copy, []).unwrap()
        };
        first_after(&mut store, 0, 100);
        assert_eq!(again(&store), 100);
        assert_eq!(first_after(&mut store, 100, 100), 101);
        store
            .connection
            .execute("DELETE FROM recent_ids", [])
            .unwrap();
        assert_eq!(again(&store), 100);
        assert_eq!(store.expire(&cursors(200)), Ok(true));
        assert_eq!(store.first(), Seq(201));
    }

    #[test]
    fn ids_of_those_that_left_are_recognised_after_a_start() {
        let folder = TempDir::new().unwrap();
        let config = Config {
            recent_ids: 150,
            retention: Period(Duration::ZERO),
            ..config(&folder)
        };
        let mut store = Store::open(&config).unwrap();
        first_after(&mut store, 0, 100);
        assert_eq!(first_after(&mut store, 100, 100), 101);
        drop(store);
        let mut store = Store::open(&config).unwrap();
        for (number, is_new) in [(200, false), (51, false), (50, true)] {
            let outcome = store.append(&events([number], 0), &cursors(100)).unwrap();
            let appended = outcome[0].as_ref().unwrap();
            assert_eq!(*appended != Appended::Repeated, is_new, "{number}");
        }
    }

    #[test]
    fn fewer_leave_at_once_where_the_disk_has_little_room() {
        let free = [0, 80_000, 160_000, 8_000_000, 16_000_000, u64::MAX];
        assert_eq!(free.map(deleted_at_once), [8, 9, 19, 976, 1000, 1000]);
    }

    #[test]
    fn pages_of_events_that_left_are_free() {
        let folder = TempDir::new().unwrap();
        let mut store = without_retention(&folder);
        let empty = store.usage;
        assert_eq!(empty.free_page_bytes, 0);
        store.append(&events(1..=100, 4000), &cursors(0)).unwrap();
        let full = store.usage;
        assert!(full.used_bytes >= empty.used_bytes + 400_000, "{full:?}");
        assert_eq!(full.free_page_bytes, 0);
        store.expire(&cursors(100)).unwrap();
        let left = store.usage;
        let all = |usage: Usage| usage.used_bytes + usage.free_page_bytes;
        assert_eq!(all(left), all(full));
        assert!(left.free_page_bytes >= 400_000, "{left:?}");
    }
}
