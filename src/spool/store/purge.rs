//! Purges the oldest events that are forwarded: decides when, how many, and in which transaction.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Store, classify};
use crate::event::{Seq, UnixMillis};
use crate::spool::append::AppendError;
use crate::spool::cursor::Cursor;
use crate::spool::schema;

/// Rows per purge. Together with an insert it is the minimum, because a smaller purge would write more pages than it
/// frees; if the insert has more rows, the purge may have as many. In the maintenance it is the maximum, so that
/// callbacks do not wait long.
const BATCH: u64 = 64;

/// A range of the oldest events to purge.
#[derive(Debug, Clone, Copy)]
pub(super) struct Purge {
    first: u64,
    last: u64,
    /// The first number whose id must still be recognised.
    recent_from: u64,
}

impl Purge {
    /// The oldest event after the purge; if there is none, the next one.
    pub(super) const fn first_after(self) -> Seq {
        Seq(self.last + 1)
    }

    /// Deletes the events, but keeps the ids that must still be recognised. Some ids may exist already, because a
    /// salvage may find events that were purged before.
    pub(super) fn run(self, connection: &Connection) -> rusqlite::Result<()> {
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
    /// Events to delete in the same transaction as the insert of `coming` others, so that SQLite reuses their
    /// pages. `None` if there are fewer than [`BATCH`].
    pub(super) fn purge_with_insert(
        &self,
        coming: usize,
        cursors: &BTreeMap<String, Cursor>,
    ) -> Option<Purge> {
        let counts = BATCH..=BATCH.max(coming as u64);
        // An error is ignored here: the maintenance reads the same rows and reports it.
        self.purgeable(cursors, Some(self.cutoff()), counts).ok()?
    }

    /// Purges a batch of forwarded events whose retention has expired. Returns whether there were any.
    pub(in crate::spool) fn purge_expired(
        &mut self,
        cursors: &BTreeMap<String, Cursor>,
    ) -> Result<bool, AppendError> {
        self.purge_forwarded(cursors, Some(self.cutoff()))
    }

    /// Purges a batch of forwarded events that were not appended after `cutoff`.
    pub(super) fn purge_forwarded(
        &mut self,
        cursors: &BTreeMap<String, Cursor>,
        cutoff: Option<i64>,
    ) -> Result<bool, AppendError> {
        let Some(purge) = self.purgeable(cursors, cutoff, 1..=BATCH)? else {
            return Ok(false);
        };
        let next = self.next;
        self.unsynced(|store| {
            store.transaction(|connection| {
                purge.run(connection)?;
                // The table may be empty now, and a number must not be assigned again.
                schema::save_next_seq(connection, next)
            })
        })?;
        self.first = purge.first_after();
        Ok(true)
    }

    /// In Unix milliseconds: the retention of events that were appended after this time is not over.
    fn cutoff(&self) -> i64 {
        let retention = i64::try_from(self.config.retention.0.as_millis()).unwrap_or(i64::MAX);
        UnixMillis::now().as_millis().saturating_sub(retention)
    }

    /// The oldest events that are forwarded and were not appended after `cutoff`: as many as `counts` allows, `None`
    /// if there are fewer.
    fn purgeable(
        &self,
        cursors: &BTreeMap<String, Cursor>,
        cutoff: Option<i64>,
        counts: RangeInclusive<u64>,
    ) -> Result<Option<Purge>, AppendError> {
        let first = self.first.0;
        let enough = |last: u64| last + 1 >= first + counts.start();
        let mut last = self.forwarded(cursors).0.min(first + counts.end() - 1);
        if let Some(cutoff) = cutoff.filter(|_| enough(last)) {
            // The clock may have been set back, so later events can be older. Stop before the first young event:
            // a purge is one contiguous range.
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
        Ok(enough(last).then_some(Purge {
            first,
            last,
            recent_from,
        }))
    }

    /// The newest event that every pinning sink has confirmed. A sink that is no longer configured pins events if it
    /// had not confirmed everything when it was removed.
    pub(super) fn forwarded(&self, cursors: &BTreeMap<String, Cursor>) -> Seq {
        let removed = self
            .saved_cursors
            .iter()
            .filter(|(sink, cursor)| cursor.pins && !cursors.contains_key(*sink))
            .map(|(_, cursor)| cursor.seq);
        let configured = cursors.values().map(Cursor::position);
        let lowest = configured.chain(removed).min();
        lowest.map_or(self.last(), |lowest| lowest.min(self.last()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::setting::Period;
    use crate::spool::quota::Usage;
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

    /// So an append waits for at most one batch.
    #[test]
    fn expired_events_are_purged_in_batches() {
        let folder = TempDir::new().unwrap();
        let mut store = without_retention(&folder);
        let cursors = cursors(150);
        store.append(&events(1..=200, 0), &cursors).unwrap();
        for first in [65, 129, 151] {
            assert_eq!(store.purge_expired(&cursors), Ok(true));
            assert_eq!(store.first, Seq(first));
        }
        assert_eq!(store.purge_expired(&cursors), Ok(false));
    }

    /// Appends `coming` events when `forwarded` have been forwarded; returns the oldest event kept.
    fn oldest_kept_after_append(store: &mut Store, forwarded: u64, coming: u64) -> u64 {
        let next = u128::from(store.next.0);
        let coming = events(next..next + u128::from(coming), 1000);
        store.append(&coming, &cursors(forwarded)).unwrap();
        store.first.0
    }

    #[test]
    fn purges_at_least_a_batch_and_as_many_as_are_inserted() {
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
            assert_eq!(
                oldest_kept_after_append(&mut store, forwarded, coming),
                first
            );
        }
        store.config.retention = Period(Duration::from_secs(3600));
        assert_eq!(oldest_kept_after_append(&mut store, 1000, 100), 301);
    }

    /// Such pages are written once; with separate commits they would be written twice.
    #[test]
    fn new_events_reuse_the_pages_of_purged_ones() {
        let folder = TempDir::new().unwrap();
        let mut store = without_retention(&folder);
        let mut written = |forwarded| {
            assert_eq!(store.checkpoint_all(), Ok(true));
            let first = oldest_kept_after_append(&mut store, forwarded, 100);
            assert_eq!(first, forwarded + 1);
            files::wal_size(&store.config.path)
        };
        written(0);
        let alone = written(0);
        let together = written(100);
        assert!(together < alone * 5 / 4, "{together} of {alone}");
    }

    #[test]
    fn a_failed_purge_does_not_prevent_the_insert() {
        let folder = TempDir::new().unwrap();
        let mut store = without_retention(&folder);
        oldest_kept_after_append(&mut store, 0, 100);
        let refuse =
            "CREATE TRIGGER refuse BEFORE DELETE ON events BEGIN SELECT raise(ABORT, 'no'); END";
        store.connection.execute_batch(refuse).unwrap();
        assert_eq!(oldest_kept_after_append(&mut store, 100, 1), 1);
        assert_eq!(store.last(), Seq(101));
        store.purge_expired(&cursors(100)).unwrap_err();
    }

    #[test]
    fn salvaged_events_with_kept_ids_can_be_purged() {
        let folder = TempDir::new().unwrap();
        let mut store = without_retention(&folder);
        let keep_ids = |store: &Store| {
            let copy = "INSERT INTO recent_ids SELECT seq, id FROM events";
            store.connection.execute(copy, []).unwrap()
        };
        oldest_kept_after_append(&mut store, 0, 100);
        assert_eq!(keep_ids(&store), 100);
        assert_eq!(oldest_kept_after_append(&mut store, 100, 100), 101);
        store
            .connection
            .execute("DELETE FROM recent_ids", [])
            .unwrap();
        assert_eq!(keep_ids(&store), 100);
        while store.purge_expired(&cursors(200)).unwrap() {}
        assert_eq!(store.first, Seq(201));
    }

    #[test]
    fn ids_of_purged_events_are_recognised_after_a_start() {
        let folder = TempDir::new().unwrap();
        let config = Config {
            recent_ids: 150,
            retention: Period(Duration::ZERO),
            ..config(&folder)
        };
        let mut store = Store::open(&config).unwrap();
        oldest_kept_after_append(&mut store, 0, 100);
        assert_eq!(oldest_kept_after_append(&mut store, 100, 100), 101);
        drop(store);
        let mut store = Store::open(&config).unwrap();
        for (number, is_new) in [(200, false), (51, false), (50, true)] {
            let outcome = store.append(&events([number], 0), &cursors(100)).unwrap();
            let appended = outcome[0].as_ref().unwrap();
            assert_eq!(matches!(appended, Appended::New(_)), is_new, "{number}");
        }
    }

    #[test]
    fn pages_of_purged_events_are_free() {
        let folder = TempDir::new().unwrap();
        let mut store = without_retention(&folder);
        let empty = store.usage;
        assert_eq!(empty.free_page_bytes, 0);
        store.append(&events(1..=100, 4000), &cursors(0)).unwrap();
        let full = store.usage;
        assert!(full.used_bytes >= empty.used_bytes + 400_000, "{full:?}");
        assert_eq!(full.free_page_bytes, 0);
        while store.purge_expired(&cursors(100)).unwrap() {}
        let left = store.usage;
        let all = |usage: Usage| usage.used_bytes + usage.free_page_bytes;
        assert_eq!(all(left), all(full));
        assert!(left.free_page_bytes >= 400_000, "{left:?}");
    }
}
