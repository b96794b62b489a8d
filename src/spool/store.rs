//! The writing side of the file: synchronous, one owner, no locks. The caller chooses the thread.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, ffi, params};
use uuid::Uuid;

use super::files::{self, Lock};
use super::recent_ids::RecentIds;
use super::room::{self, Room, Usage};
use super::{AppendError, Appended, Config, Cursor, schema};
use crate::event::{Event, Kind, Millis, Seq, Stored};

/// Why the spool cannot be opened. It is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("spool {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// There is no file.
    #[error("there is no spool {}", .0.display())]
    Missing(PathBuf),
    /// The file is a database, but not a spool.
    #[error("{} is not a spool of recall-relay", .0.display())]
    Foreign(PathBuf),
    /// The file was written by a newer version of the program.
    #[error("spool {} has format {found}, this program knows up to {known}: run a newer version", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i32,
        /// The newest format that is known.
        known: i32,
    },
    /// The folder or the files beside the database.
    #[error("could not prepare the files of spool {}", .path.display())]
    Files {
        /// The database file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database.
    #[error("could not open spool {}", .path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

/// An event that a sink could not publish anywhere, and why.
#[derive(Debug, Clone)]
pub struct SetAside {
    pub(super) sink: String,
    pub(super) stored: Stored,
    pub(super) reason: String,
    pub(super) detail: String,
}

/// The size of the log at which it is brought into the file. Larger made answers wait longer for it,
/// now and then; smaller writes the same pages more often.
const LOG_BYTES: u64 = 4 << 20;

/// SQLite's default page: what deleting a row may write.
const PAGE: u64 = 4096;

/// Rows that are deleted in one transaction: few enough that nobody waits long for it.
const DELETE_AT_ONCE: u64 = 1000;

/// The open file.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    config: Config,
    first: Seq,
    next: Seq,
    last_at_open: Seq,
    /// Written to the log since it was last checkpointed, roughly.
    log_bytes: u64,
    recent: RecentIds,
    saved_cursors: BTreeMap<String, Seq>,
    _lock: Lock,
}

impl Store {
    /// Opens the file, creating it where there is none.
    pub(super) fn open(config: &Config) -> Result<Self, OpenError> {
        let path = &config.path;
        let files_error = |source| OpenError::Files {
            path: path.clone(),
            source,
        };
        if let Some(folder) = path.parent() {
            files::create_folder(folder).map_err(files_error)?;
        }
        let lock = match files::lock(path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(OpenError::Locked(path.clone()));
            }
            lock => lock.map_err(files_error)?,
        };
        files::create_database(path).map_err(files_error)?;
        Self::open_database(config, lock)
    }

    fn open_database(config: &Config, lock: Lock) -> Result<Self, OpenError> {
        let path = &config.path;
        let database_error = |source| OpenError::Database {
            path: path.clone(),
            source,
        };
        let connection = Connection::open(path).map_err(database_error)?;
        let (application, version, tables) = marks(&connection).map_err(database_error)?;
        match (application, version) {
            (0, 0) if tables == 0 => schema::create(&connection).map_err(database_error)?,
            (schema::APPLICATION_ID, schema::VERSION) => {}
            (schema::APPLICATION_ID, found) if found > schema::VERSION => {
                return Err(OpenError::Newer {
                    path: path.clone(),
                    found,
                    known: schema::VERSION,
                });
            }
            _ => return Err(OpenError::Foreign(path.clone())),
        }
        Self::load(connection, config, lock).map_err(database_error)
    }

    fn load(connection: Connection, config: &Config, lock: Lock) -> rusqlite::Result<Self> {
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.set_prepared_statement_cache_capacity(32);
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        if mode != "wal" {
            return Err(invalid(format!(
                "the file system allows journal_mode {mode}, not wal"
            )));
        }
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "temp_store", "memory")?;
        // SQLite's own checkpoints swallow a failed sync, and make some commit wait.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        // A log that is found may never have been synced: whoever wrote it was killed, or its sync failed.
        // What it holds must be on disk before anything is believed to be, or appended behind it.
        let busy: bool =
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy {
            return Err(invalid(
                "somebody reads the spool and never ends".to_owned(),
            ));
        }

        let bounds = "SELECT (SELECT min(seq) FROM events), (SELECT max(seq) FROM events),
                             (SELECT max(seq) FROM recent_ids), (SELECT max(seq) FROM cursors),
                             (SELECT next_seq FROM identity)";
        let (first, next) = connection.query_row(bounds, [], |row| {
            let largest = [row.get::<_, Option<u64>>(1)?, row.get(2)?, row.get(3)?];
            let after = largest.into_iter().flatten().max().map_or(1, |seq| seq + 1);
            let next = after.max(row.get(4)?);
            Ok((row.get::<_, Option<u64>>(0)?.unwrap_or(next), next))
        })?;

        let mut recent = RecentIds::new(config.recent_ids);
        let oldest = next.saturating_sub(config.recent_ids as u64);
        let ids = "SELECT seq, id FROM recent_ids WHERE seq >= ?1
                   UNION ALL SELECT seq, id FROM events WHERE seq >= ?1 ORDER BY 1";
        let mut statement = connection.prepare(ids)?;
        let mut rows = statement.query([oldest])?;
        while let Some(row) = rows.next()? {
            recent.insert(Uuid::from_bytes(row.get(1)?));
        }
        drop(rows);
        drop(statement);

        let saved_cursors = connection
            .prepare("SELECT sink, seq FROM cursors")?
            .query_map([], |row| Ok((row.get(0)?, Seq(row.get(1)?))))?
            .collect::<rusqlite::Result<_>>()?;
        Ok(Self {
            connection,
            config: config.clone(),
            first: Seq(first),
            next: Seq(next),
            last_at_open: Seq(next - 1),
            log_bytes: 0,
            recent,
            saved_cursors,
            _lock: lock,
        })
    }

    /// The oldest event kept, or the next to come.
    pub(super) const fn first(&self) -> Seq {
        self.first
    }

    /// The number that the next event gets.
    pub(super) const fn next(&self) -> Seq {
        self.next
    }

    /// The cursors as they are on disk.
    pub(super) const fn saved_cursors(&self) -> &BTreeMap<String, Seq> {
        &self.saved_cursors
    }

    /// Appends a group in one transaction and syncs it, together with the cursors.
    ///
    /// The outer error speaks for the whole group: nothing of it is kept.
    pub(super) fn append(
        &mut self,
        events: &[Event],
        cursors: &BTreeMap<String, Cursor>,
    ) -> Result<Vec<Result<Appended, AppendError>>, AppendError> {
        let wanted = events
            .iter()
            .map(|event| room::cost(event.bytes.len()))
            .sum();
        let mut room = self.make_room(wanted, cursors)?;
        let mut next = self.next;
        let mut new_ids = HashSet::new();
        let mut outcomes = Vec::with_capacity(events.len());
        let mut to_insert = Vec::with_capacity(events.len());
        for event in events {
            let cost = room::cost(event.bytes.len());
            if self.recent.contains(&event.id) || new_ids.contains(&event.id) {
                outcomes.push(Ok(Appended::Repeated));
            } else if cost > room.bytes {
                outcomes.push(Err(AppendError::Full(room.explain(&self.config))));
            } else {
                room.bytes -= cost;
                if self.config.recent_ids > 0 {
                    new_ids.insert(event.id);
                }
                outcomes.push(Ok(Appended::New(next)));
                to_insert.push((next, event));
                next = next.next();
            }
        }
        if to_insert.is_empty() {
            return Ok(outcomes);
        }

        let moved = self.moved(cursors);
        let now = Millis::now().as_millis();
        self.transaction(|connection| {
            let mut insert = connection.prepare_cached(
                "INSERT INTO events (seq, id, kind, appended_at, checksum, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for (seq, event) in &to_insert {
                let (id, kind) = (event.id.as_bytes(), kind_to_row(event.kind));
                let checksum = schema::checksum(seq.0, id, kind, &event.bytes);
                insert.execute(params![seq.0, id, kind, now, checksum, &event.bytes[..]])?;
            }
            save_cursors(connection, &moved)
        })?;
        self.next = next;
        self.saved_cursors.extend(moved);
        self.log_bytes += to_insert
            .iter()
            .map(|(_, event)| room::cost(event.bytes.len()))
            .sum::<u64>();
        for (_, event) in to_insert {
            self.recent.insert(event.id);
        }
        Ok(outcomes)
    }

    /// Saves the cursors that have moved, without a sync: a power cut may lose the move, not the row.
    pub(super) fn save_cursors(
        &mut self,
        cursors: &BTreeMap<String, Cursor>,
    ) -> Result<(), AppendError> {
        let moved = self.moved(cursors);
        if moved.is_empty() {
            return Ok(());
        }
        self.unsynced(|store| store.transaction(|connection| save_cursors(connection, &moved)))?;
        self.saved_cursors.extend(moved);
        Ok(())
    }

    /// Keeps an event for people to look at.
    pub(super) fn set_aside(&mut self, letter: &SetAside) -> Result<(), AppendError> {
        let SetAside {
            sink,
            stored,
            reason,
            detail,
        } = letter;
        let now = Millis::now().as_millis();
        self.transaction(|connection| {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO dead_letters (sink, seq, id, at, reason, detail, body)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![
                    sink,
                    stored.seq.0,
                    stored.event.id.as_bytes(),
                    now,
                    reason,
                    detail,
                    &stored.event.bytes[..]
                ])
                .map(|_| ())
        })
    }

    /// Deletes the oldest forwarded events whose retention is over, a bounded number at once. Returns
    /// whether any went.
    pub(super) fn expire(
        &mut self,
        cursors: &BTreeMap<String, Cursor>,
    ) -> Result<bool, AppendError> {
        let retention = i64::try_from(self.config.retention.0.as_millis()).unwrap_or(i64::MAX);
        let cutoff = Millis::now().as_millis().saturating_sub(retention);
        self.delete_forwarded(cursors, Some(cutoff))
    }

    /// Deletes the oldest forwarded events, those appended after `cutoff` excepted.
    fn delete_forwarded(
        &mut self,
        cursors: &BTreeMap<String, Cursor>,
        cutoff: Option<i64>,
    ) -> Result<bool, AppendError> {
        let forwarded = self.forwarded(cursors);
        if forwarded < self.first {
            return Ok(false);
        }
        let first = self.first.0;
        let mut end = forwarded.0.min(first + DELETE_AT_ONCE - 1);
        if let Some(cutoff) = cutoff {
            let young: Option<u64> = self
                .connection
                .prepare_cached(
                    "SELECT seq FROM events WHERE seq BETWEEN ?1 AND ?2 AND appended_at > ?3
                     ORDER BY seq LIMIT 1",
                )
                .and_then(|mut young| {
                    young
                        .query_row(params![first, end, cutoff], |row| row.get(0))
                        .optional()
                })
                .map_err(|error| classify(&error))?;
            if let Some(young) = young {
                end = young - 1;
            }
        }
        if end < first {
            return Ok(false);
        }

        let recent_from = self.next.0.saturating_sub(self.config.recent_ids as u64);
        let next = self.next.0;
        self.unsynced(|store| {
            store.transaction(|connection| {
                connection
                    .prepare_cached(
                        "INSERT INTO recent_ids SELECT seq, id FROM events
                         WHERE seq BETWEEN max(?1, ?2) AND ?3",
                    )?
                    .execute([first, recent_from, end])?;
                connection
                    .prepare_cached("DELETE FROM events WHERE seq <= ?1")?
                    .execute([end])?;
                connection
                    .prepare_cached("DELETE FROM recent_ids WHERE seq < ?1")?
                    .execute([recent_from])?;
                connection
                    .prepare_cached("UPDATE identity SET next_seq = ?1")?
                    .execute([next])
                    .map(|_| ())
            })
        })?;
        self.first = Seq(end + 1);
        self.log_bytes += (end - first + 1) * PAGE;
        Ok(true)
    }

    /// Brings the log into the file once it is large enough, and syncs both.
    pub(super) fn checkpoint(&mut self) -> Result<(), AppendError> {
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
    /// more counts for what it had not confirmed when it was missed, not for what came afterwards.
    fn forwarded(&self, cursors: &BTreeMap<String, Cursor>) -> Seq {
        let last = Seq(self.next.0 - 1);
        let orphans = self
            .saved_cursors
            .iter()
            .filter(|(sink, seq)| !cursors.contains_key(*sink) && **seq < self.last_at_open)
            .map(|(_, seq)| *seq);
        let configured = cursors.values().map(Cursor::position);
        configured.chain(orphans).min().unwrap_or(last).min(last)
    }

    /// How much fits now, after forwarded events have made way if `wanted` bytes do not fit.
    pub(super) fn make_room(
        &mut self,
        wanted: u64,
        cursors: &BTreeMap<String, Cursor>,
    ) -> Result<Room, AppendError> {
        loop {
            let room = self.room();
            if room.bytes >= wanted || !self.delete_forwarded(cursors, None)? {
                return Ok(room);
            }
        }
    }

    /// How much fits now.
    fn room(&self) -> Room {
        Room::look(&self.config, self.usage())
    }

    /// Why nothing fits, for people.
    pub(super) fn explain(&self, room: Room) -> String {
        room.explain(&self.config)
    }

    /// What the file uses; all of it where it cannot be read.
    pub(super) fn usage(&self) -> Usage {
        let pages = "SELECT (SELECT page_count FROM pragma_page_count),
                            (SELECT freelist_count FROM pragma_freelist_count),
                            (SELECT page_size FROM pragma_page_size)";
        let read = self.connection.prepare_cached(pages).and_then(|mut pages| {
            pages.query_row([], |row| {
                let (all, free, size): (u64, u64, u64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                Ok(Usage {
                    used_bytes: (all - free) * size,
                    free_page_bytes: free * size,
                })
            })
        });
        read.unwrap_or(Usage {
            used_bytes: u64::MAX,
            free_page_bytes: 0,
        })
    }

    /// Makes sure that every configured sink has a cursor on disk, and drops the one of stdout where
    /// it is not the sink: it holds nothing.
    pub(super) fn settle_cursors(&mut self, sinks: &[&str]) -> Result<(), AppendError> {
        let start = Seq(self.first.0 - 1);
        let new: BTreeMap<String, Seq> = sinks
            .iter()
            .filter(|sink| !self.saved_cursors.contains_key(**sink))
            .map(|sink| ((*sink).to_owned(), start))
            .collect();
        let drop_stdout = !sinks.contains(&STDOUT);
        self.transaction(|connection| {
            save_cursors(connection, &new)?;
            if drop_stdout {
                connection.execute("DELETE FROM cursors WHERE sink = ?1", [STDOUT])?;
            }
            Ok(())
        })?;
        self.saved_cursors.extend(new);
        if drop_stdout {
            self.saved_cursors.remove(STDOUT);
        }
        Ok(())
    }

    /// Deletes a sink's cursor.
    pub(super) fn forget(&self, sink: &str) -> Result<bool, OpenError> {
        self.connection
            .execute("DELETE FROM cursors WHERE sink = ?1", [sink])
            .map(|rows| rows > 0)
            .map_err(|source| OpenError::Database {
                path: self.config.path.clone(),
                source,
            })
    }

    fn moved(&self, cursors: &BTreeMap<String, Cursor>) -> BTreeMap<String, Seq> {
        cursors
            .iter()
            .map(|(sink, cursor)| (sink.clone(), cursor.position()))
            .filter(|(sink, seq)| self.saved_cursors.get(sink) != Some(seq))
            .collect()
    }

    /// Runs `work` with commits that are not synced, as the next synced one covers them.
    fn unsynced<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, AppendError>,
    ) -> Result<T, AppendError> {
        self.connection
            .execute_batch("PRAGMA synchronous = normal")
            .map_err(|error| classify(&error))?;
        let outcome = work(self);
        // Whatever happened: no answer may ever rest on a commit that was not synced.
        self.connection
            .execute_batch("PRAGMA synchronous = full")
            .map_err(|error| {
                AppendError::Failed(format!("commits can no longer be synced: {error}"))
            })?;
        outcome
    }

    /// Runs `work` in one transaction: all of it, or nothing.
    fn transaction(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), AppendError> {
        let run = |sql: &str| self.connection.prepare_cached(sql)?.execute([]).map(|_| ());
        let outcome = run("BEGIN IMMEDIATE")
            .and_then(|()| work(&self.connection))
            .and_then(|()| run("COMMIT"));
        let Err(error) = outcome else {
            return Ok(());
        };
        if !self.connection.is_autocommit() {
            let _ = run("ROLLBACK");
        }
        if !self.connection.is_autocommit() {
            return Err(AppendError::Failed(format!(
                "could not roll back after: {error}"
            )));
        }
        Err(classify(&error))
    }
}

/// The name of the sink that holds nothing once it is not configured.
const STDOUT: &str = "stdout";

/// Why the spool cannot be opened, as SQLite would say it.
fn invalid(reason: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR), Some(reason))
}

/// The file's application, version, and number of tables.
fn marks(connection: &Connection) -> rusqlite::Result<(i32, i32, i64)> {
    Ok((
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?,
        connection.pragma_query_value(None, "user_version", |row| row.get(0))?,
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?,
    ))
}

fn save_cursors(connection: &Connection, cursors: &BTreeMap<String, Seq>) -> rusqlite::Result<()> {
    let mut save = connection.prepare_cached(
        "INSERT INTO cursors (sink, seq) VALUES (?1, ?2)
         ON CONFLICT (sink) DO UPDATE SET seq = excluded.seq",
    )?;
    for (sink, seq) in cursors {
        save.execute(params![sink, seq.0])?;
    }
    Ok(())
}

const fn kind_to_row(kind: Kind) -> u8 {
    match kind {
        Kind::Recalled => 0,
        Kind::Rejected => 1,
    }
}

/// What a failed transaction means. A failed fsync is final: the system may have thrown away the pages
/// that it could not write, so nothing that this process believes about the file is sure any more.
fn classify(error: &rusqlite::Error) -> AppendError {
    let text = error.to_string();
    let rusqlite::Error::SqliteFailure(failure, _) = error else {
        return AppendError::Failed(text);
    };
    match (failure.code, failure.extended_code) {
        (_, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)
        | (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => AppendError::Failed(text),
        (ErrorCode::DiskFull, _) => AppendError::Full(text),
        _ => AppendError::Io(text),
    }
}
