//! Room: what the file uses, what may leave it, and the log that is brought into it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Store, classify};
use crate::event::{Millis, Seq};
use crate::spool::room::{self, HEADROOM, Limit, Room};
use crate::spool::schema::PAGE_SIZE;
use crate::spool::{AppendError, Cursor, files};

/// The size of the log at which it is brought into the file. Larger makes answers wait longer for it,
/// now and then; smaller writes the same pages, and syncs, more often.
const LOG_BYTES: u64 = 1 << 20;

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
    fn delete_forwarded(
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

    /// Brings the log into the file once it is large enough, and syncs both.
    pub(in crate::spool) fn checkpoint(&mut self) -> Result<(), AppendError> {
        if self.log_bytes < LOG_BYTES {
            return Ok(());
        }
        self.log_bytes = 0;
        self.connection
            .prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")
            .and_then(|mut checkpoint| checkpoint.query_row([], |_| Ok(())))
            .map_err(|error| classify(&error))
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

    /// How much fits now; if `wanted` bytes do not, after the log and then forwarded events have made way.
    pub(in crate::spool) fn make_room(
        &mut self,
        wanted: u64,
        cursors: &BTreeMap<String, Cursor>,
    ) -> Result<Room, AppendError> {
        let mut log_is_read = false;
        loop {
            let room = self.room();
            if room.bytes >= wanted {
                return Ok(room);
            }
            let on_disk = room.limit == Limit::Disk && !log_is_read;
            if on_disk && files::log_size(&self.config.path) >= HEADROOM {
                log_is_read = !self.checkpoint_all()?;
            } else if !self.delete_forwarded(cursors, None)? {
                return Ok(room);
            }
        }
    }

    /// How much fits now.
    pub(in crate::spool) fn room(&self) -> Room {
        Room::look(&self.config, self.usage)
    }

    /// Why nothing fits, for people.
    pub(in crate::spool) fn explain(&self, room: Room) -> String {
        room.explain(&self.config)
    }
}

/// How many rows one transaction deletes, for the free bytes of the disk.
fn deleted_at_once(free_disk: u64) -> u64 {
    let pages = free_disk / PAGE_SIZE as u64;
    (pages / 2).clamp(DELETE_AT_LEAST, DELETE_AT_ONCE)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use rusqlite::OpenFlags;
    use tempfile::TempDir;

    use super::*;
    use crate::setting::{Period, Size};
    use crate::spool::room::Usage;
    use crate::spool::store::tests::events;
    use crate::spool::tests::config;
    use crate::spool::{Appended, Config, schema};

    fn without_retention(folder: &TempDir) -> Store {
        Store::open(&Config {
            retention: Period(Duration::ZERO),
            ..config(folder)
        })
        .unwrap()
    }

    fn cursors(seq: u64) -> BTreeMap<String, Cursor> {
        [("sink".to_owned(), Cursor::new(Seq(seq)))].into()
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

    /// And is not asked to where it is no help. Who reads it is not waited for.
    #[test]
    fn the_log_makes_room_on_a_full_disk() {
        let folder = TempDir::new().unwrap();
        let mut store = Store::open(&config(&folder)).unwrap();
        let path = store.config.path.clone();
        let cursors = cursors(0);
        store.append(&events(1..=30, 5000), &cursors).unwrap();
        let log = files::log_size(&path);
        assert!(log > HEADROOM, "{log}");

        store.config.max_bytes = Size(1);
        assert_eq!(store.make_room(1, &cursors).unwrap().bytes, 0);
        assert_eq!(files::log_size(&path), log);

        store.config.max_bytes = Size(1 << 30);
        store.config.reserve = Size(u64::MAX);
        let reader = schema::connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        reader
            .execute_batch("BEGIN; SELECT count(*) FROM events")
            .unwrap();
        assert_eq!(store.make_room(1, &cursors).unwrap().bytes, 0);
        assert_eq!(files::log_size(&path), log);
        reader.execute_batch("COMMIT").unwrap();
        assert_eq!(store.make_room(1, &cursors).unwrap().bytes, 0);
        assert_eq!(files::log_size(&path), 0);
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

    /// Otherwise it would grow for as long as the program runs.
    #[test]
    fn the_log_is_brought_into_the_file_again_and_again() {
        let folder = TempDir::new().unwrap();
        let mut store = without_retention(&folder);
        for round in 0..8 {
            let numbers = round * 100..(round + 1) * 100;
            store.append(&events(numbers, 20_000), &cursors(0)).unwrap();
            store.checkpoint().unwrap();
            let log = files::log_size(&store.config.path);
            assert!(log < 8 << 20, "{log} after round {round}");
        }
        let file = fs::metadata(&store.config.path).unwrap().len();
        assert!(file > 12 << 20, "{file}");
    }

    #[test]
    fn it_says_which_setting_leaves_no_room() {
        let folder = TempDir::new().unwrap();
        let store = Store::open(&Config {
            max_bytes: Size(1),
            ..config(&folder)
        })
        .unwrap();
        let why = store.explain(store.room());
        assert!(why.contains("spool.max_bytes (1)"), "{why}");
    }
}
