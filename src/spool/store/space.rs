//! Measures free space and makes more.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Store, classify};
use crate::spool::append::AppendError;
use crate::spool::cursor::Cursor;
use crate::spool::quota::{FreeSpace, HEADROOM, Limit};
use crate::spool::{files, schema};

/// The number of pages in the WAL at which it is checkpointed: one MiB. With more, some answers wait longer for a
/// checkpoint; with fewer, the same pages are written, and synced, more often.
const WAL_PAGES: i64 = 256;

/// How long a full checkpoint waits for readers.
const READERS_TIMEOUT: Duration = Duration::from_millis(200);

impl Store {
    /// Returns the free space. If it is less than `wanted`, checkpoints the WAL and purges forwarded events first.
    pub(in crate::spool) fn make_space(
        &mut self,
        wanted: u64,
        cursors: &BTreeMap<String, Cursor>,
    ) -> Result<FreeSpace, AppendError> {
        // Set when a reader prevents a full checkpoint: then another attempt would not help.
        let mut wal_is_read = false;
        loop {
            let free = self.free_space();
            if free.bytes >= wanted {
                return Ok(free);
            }
            let on_disk = free.limit == Limit::Disk && !wal_is_read;
            if on_disk && files::wal_size(&self.config.path) >= HEADROOM {
                wal_is_read = !self.checkpoint_all()?;
            } else if !self.purge_forwarded(cursors, None)? {
                return Ok(free);
            }
        }
    }

    /// The current free space.
    pub(in crate::spool) fn free_space(&self) -> FreeSpace {
        FreeSpace::measure(&self.config, self.usage)
    }

    /// How many bytes the events that cannot be purged, and the dead letters, take. An estimate: events are taken to be
    /// equally large.
    pub(in crate::spool) fn pinned_bytes(&self, cursors: &BTreeMap<String, Cursor>) -> u64 {
        let rows = self.next.0.saturating_sub(self.first.0);
        let pinned = self.last().0.saturating_sub(self.forwarded(cursors).0);
        let dead_letters = self.dead_letter_bytes.min(self.usage.used_bytes);
        let events = self.usage.used_bytes - dead_letters;
        let events = u128::from(events) * u128::from(pinned.min(rows)) / u128::from(rows.max(1));
        dead_letters.saturating_add(u64::try_from(events).unwrap_or(u64::MAX))
    }

    /// Explains for people why nothing fits.
    pub(in crate::spool) fn explain(&self, free: FreeSpace) -> String {
        free.explain(&self.config)
    }

    /// Checkpoints the WAL if it is large enough, and syncs both files.
    pub(in crate::spool) fn checkpoint(&mut self) -> Result<(), AppendError> {
        let waiting = self.checkpoint_as("PRAGMA wal_checkpoint(NOOP)")?;
        if waiting >= WAL_PAGES {
            self.checkpoint_as("PRAGMA wal_checkpoint(PASSIVE)")?;
        }
        Ok(())
    }

    /// Runs a checkpoint pragma; returns how many pages of the WAL are not checkpointed.
    fn checkpoint_as(&self, pragma: &str) -> Result<i64, AppendError> {
        self.connection
            .prepare_cached(pragma)
            .and_then(|mut checkpoint| {
                checkpoint.query_row([], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?))
            })
            .map_err(|error| classify(&error))
    }

    /// Checkpoints the WAL, so that the file alone contains everything, and truncates it. Does not wait long for
    /// readers; returns whether it succeeded.
    pub(in crate::spool) fn checkpoint_all(&self) -> Result<bool, AppendError> {
        let wait = |time| self.connection.busy_timeout(time);
        wait(READERS_TIMEOUT)
            .and_then(|()| {
                let truncate = "PRAGMA wal_checkpoint(TRUNCATE)";
                let outcome = self.connection.query_row(truncate, [], |row| row.get(0));
                // Restore the timeout, even after a failed checkpoint.
                wait(schema::BUSY_TIMEOUT).and(outcome)
            })
            .map(|busy: bool| !busy)
            .map_err(|error| classify(&error))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rusqlite::OpenFlags;
    use tempfile::TempDir;

    use super::*;
    use crate::setting::Size;
    use crate::spool::Config;
    use crate::spool::store::tests::{cursors, events};
    use crate::spool::tests::config;

    /// But only if it helps, and without waiting long for readers.
    #[test]
    fn make_space_checkpoints_the_wal_on_a_full_disk() {
        let folder = TempDir::new().unwrap();
        let mut store = Store::open(&config(&folder)).unwrap();
        let path = store.config.path.clone();
        let cursors = cursors(0);
        store.append(&events(1..=30, 5000), &cursors).unwrap();
        let wal = files::wal_size(&path);
        assert!(wal > HEADROOM, "{wal}");

        store.config.max_bytes = Size(1);
        assert_eq!(store.make_space(1, &cursors).unwrap().bytes, 0);
        assert_eq!(files::wal_size(&path), wal);

        store.config.max_bytes = Size(1 << 30);
        store.config.reserve = Size(u64::MAX);
        let reader = schema::connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        reader
            .execute_batch("BEGIN; SELECT count(*) FROM events")
            .unwrap();
        assert_eq!(store.make_space(1, &cursors).unwrap().bytes, 0);
        assert_eq!(files::wal_size(&path), wal);
        reader.execute_batch("COMMIT").unwrap();
        assert_eq!(store.make_space(1, &cursors).unwrap().bytes, 0);
        assert_eq!(files::wal_size(&path), 0);
    }

    /// Otherwise it would grow for as long as the program runs.
    #[test]
    fn repeated_checkpoints_bound_the_wal() {
        let folder = TempDir::new().unwrap();
        let mut store = Store::open(&config(&folder)).unwrap();
        for round in 0..8 {
            let numbers = round * 100..(round + 1) * 100;
            store.append(&events(numbers, 20_000), &cursors(0)).unwrap();
            store.checkpoint().unwrap();
            let wal = files::wal_size(&store.config.path);
            assert!(wal < 8 << 20, "{wal} after round {round}");
        }
        let file = fs::metadata(&store.config.path).unwrap().len();
        assert!(file > 12 << 20, "{file}");
    }

    #[test]
    fn explain_names_the_setting_that_limits_space() {
        let folder = TempDir::new().unwrap();
        let store = Store::open(&Config {
            max_bytes: Size(1),
            ..config(&folder)
        })
        .unwrap();
        let why = store.explain(store.free_space());
        assert!(why.contains("spool.max_bytes (1)"), "{why}");
    }
}
