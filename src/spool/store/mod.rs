//! The writing side of the file: synchronous, one owner, no locks. The caller chooses the thread.

mod open;
mod retire;

use std::collections::{BTreeMap, HashSet};

use rusqlite::{Connection, ErrorCode, ffi, params};

use super::files::Lock;
use super::recent_ids::RecentIds;
use super::{AppendError, Appended, Config, Cursor, room, schema};
use crate::event::{Event, Kind, Millis, Seq, Stored};

pub use open::OpenError;

/// An event that a sink could not publish anywhere, and why.
#[derive(Debug, Clone)]
pub struct SetAside {
    pub(super) sink: String,
    pub(super) stored: Stored,
    pub(super) reason: String,
    pub(super) detail: String,
}

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
