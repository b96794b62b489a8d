//! Space: how much there is, and what makes way for more.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Store, classify};
use crate::spool::room::{HEADROOM, Limit, Room};
use crate::spool::{AppendError, Cursor, files, schema};

/// The size of the log at which it is brought into the file. Larger makes answers wait longer for it,
/// now and then; smaller writes the same pages, and syncs, more often.
const LOG_BYTES: u64 = 1 << 20;

/// How long the log waits for those who read it, before it is cut off.
const READERS_TIMEOUT: Duration = Duration::from_millis(200);

impl Store {
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

    /// Brings the log into the file, so that the file alone holds everything, and gives the log's disk
    /// space back. Does not wait long for somebody who reads: returns whether it could.
    pub(in crate::spool) fn checkpoint_all(&self) -> Result<bool, AppendError> {
        let wait = |time| self.connection.busy_timeout(time);
        wait(READERS_TIMEOUT)
            .and_then(|()| {
                let truncate = "PRAGMA wal_checkpoint(TRUNCATE)";
                let outcome = self.connection.query_row(truncate, [], |row| row.get(0));
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

    /// Otherwise it would grow for as long as the program runs.
    #[test]
    fn the_log_is_brought_into_the_file_again_and_again() {
        let folder = TempDir::new().unwrap();
        let mut store = Store::open(&config(&folder)).unwrap();
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
