//! The writing side of the file: synchronous, one owner, no locks. The caller chooses the thread.

mod errors;
mod leaving;
mod open;
mod space;

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::files::Lock;
use super::note::Note;
use super::recent_ids::RecentIds;
use super::rescue::{Findings, Gap};
use super::room::Usage;
use super::saved_cursor::SavedCursor;
use super::{AppendError, Appended, Config, Cursor, room, schema};
use crate::event::{Event, Millis, Seq, Stored};

use errors::classify;
pub(super) use errors::is_damage;
use leaving::Leaving;
pub use open::OpenError;

/// Pages that a commit writes besides those of its events: each is written whole.
const COMMIT_PAGES: u64 = 3;

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
    spool_id: Uuid,
    first: Seq,
    /// The newest event that was committed.
    last: Seq,
    next: Seq,
    /// Numbers that were given out before `next`, and whose append failed.
    unused: Option<Gap>,
    /// After the last transaction: nobody else writes.
    usage: Usage,
    /// Written to the log since it was last checkpointed, roughly.
    log_bytes: u64,
    recent: RecentIds,
    saved_cursors: BTreeMap<String, SavedCursor>,
    findings: Findings,
    lock: Arc<Lock>,
}

impl Store {
    /// What tells this spool from any other.
    pub(super) const fn spool_id(&self) -> Uuid {
        self.spool_id
    }

    /// The oldest event kept, or the next to come.
    pub(super) const fn first(&self) -> Seq {
        self.first
    }

    /// The newest event, or the one before the first.
    pub(super) const fn last(&self) -> Seq {
        self.last
    }

    /// The cursors as they are on disk.
    pub(super) const fn saved_cursors(&self) -> &BTreeMap<String, SavedCursor> {
        &self.saved_cursors
    }

    /// What the file uses.
    pub(super) const fn usage(&self) -> Usage {
        self.usage
    }

    /// What was found when it was opened that should not be so.
    pub(super) const fn findings(&self) -> &Findings {
        &self.findings
    }

    /// How many events were kept once and are lost.
    pub(super) fn lost(&self) -> u64 {
        let lost = "SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM gaps WHERE lost";
        self.connection
            .query_row(lost, [], |row| row.get(0))
            .unwrap_or_default()
    }

    /// The lock, and the note in it.
    pub(super) const fn lock(&self) -> &Arc<Lock> {
        &self.lock
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
        let mut outcomes = Vec::with_capacity(events.len());
        let mut to_insert = Vec::with_capacity(events.len());
        for event in events {
            let cost = room::cost(event.bytes.len());
            if cost > room.bytes && !self.recent.contains(&event.id) {
                outcomes.push(Err(AppendError::Full(room.explain(&self.config))));
            } else if self.recent.insert(event.id) {
                room.bytes -= cost;
                outcomes.push(Ok(Appended::New(next)));
                to_insert.push((next, event));
                next = next.next();
            } else {
                outcomes.push(Ok(Appended::Repeated));
            }
        }
        if to_insert.is_empty() {
            return Ok(outcomes);
        }

        let leaving = self.leaving_with(to_insert.len(), cursors);
        let moved = self.moved(cursors);
        let mut outcome = self.insert(&to_insert, &moved, leaving);
        if leaving.is_some() && !matches!(outcome, Ok(()) | Err(AppendError::Failed(_))) {
            // What cannot leave keeps nothing out.
            outcome = self.insert(&to_insert, &moved, None);
        }
        let last = Seq(next.0 - 1);
        let first_unused = self.unused.map_or(self.next, |unused| unused.first);
        self.next = next;
        if let Err(error) = outcome {
            self.recent.take_back(to_insert.len());
            // The log may hold what was written of it: no other event may get one of these numbers.
            self.unused = Some(Gap {
                first: first_unused,
                last,
                lost: false,
            });
            return Err(error);
        }
        self.unused = None;
        self.last = last;
        self.saved_cursors.extend(moved);
        self.write_note(cursors);
        self.log_bytes += to_insert
            .iter()
            .map(|(_, event)| room::cost(event.bytes.len()))
            .sum::<u64>();
        self.recent.trim();
        Ok(outcomes)
    }

    /// Inserts events in one transaction, saves the cursors that have moved, and deletes what leaves meanwhile.
    fn insert(
        &mut self,
        events: &[(Seq, &Event)],
        moved: &BTreeMap<String, SavedCursor>,
        leaving: Option<Leaving>,
    ) -> Result<(), AppendError> {
        let now = Millis::now().as_millis();
        let unused = self.unused;
        self.transaction(|connection| {
            if let Some(leaving) = leaving {
                leaving.delete(connection)?;
            }
            let mut insert = connection.prepare_cached(
                "INSERT INTO events (seq, id, kind, appended_at, checksum, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for (seq, event) in events {
                let (id, kind) = (event.id.as_bytes(), schema::kind_to_row(event.kind));
                let checksum = schema::checksum(seq.0, id, kind, &event.bytes);
                insert.execute(params![seq.0, id, kind, now, checksum, &event.bytes[..]])?;
            }
            if let Some(unused) = unused {
                unused.insert(connection)?;
            }
            save_cursors(connection, moved)
        })?;
        self.first = leaving.map_or(self.first, Leaving::first_after);
        Ok(())
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
        self.write_note(cursors);
        Ok(())
    }

    /// Writes something and syncs it: whether that works again.
    pub(super) fn probe(&mut self) -> Result<(), AppendError> {
        let next = self.next.0;
        self.transaction(|connection| {
            connection
                .prepare_cached("UPDATE identity SET next_seq = ?1")?
                .execute([next])
                .map(|_| ())
        })
    }

    /// Writes down beside the file what it holds now. A note that cannot be written is an old one: less
    /// would be known of a loss, and nothing is lost by it.
    pub(super) fn write_note(&self, cursors: &BTreeMap<String, Cursor>) {
        let _ = self.lock.write_note(Note {
            spool_id: self.spool_id,
            last: self.last,
            confirmed: self.forwarded(cursors),
            damaged: false,
        });
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

    /// The cursors that are not on disk as they are.
    fn moved(&self, cursors: &BTreeMap<String, Cursor>) -> BTreeMap<String, SavedCursor> {
        let now = |cursor: &Cursor| SavedCursor {
            seq: cursor.position(),
            holds: true,
        };
        cursors
            .iter()
            .map(|(sink, cursor)| (sink.clone(), now(cursor)))
            .filter(|(sink, cursor)| self.saved_cursors.get(sink) != Some(cursor))
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
        self.log_bytes += COMMIT_PAGES * schema::PAGE_SIZE as u64;
        let run = |sql: &str| self.connection.prepare_cached(sql)?.execute([]).map(|_| ());
        let outcome = run("BEGIN IMMEDIATE")
            .and_then(|()| work(&self.connection))
            .and_then(|()| Usage::read(&self.connection))
            .and_then(|usage| run("COMMIT").map(|()| usage));
        let error = match outcome {
            Ok(usage) => {
                // A page that was emptied is written, although nobody will read it.
                let emptied = usage
                    .free_page_bytes
                    .saturating_sub(self.usage.free_page_bytes);
                self.log_bytes += emptied;
                self.usage = usage;
                return Ok(());
            }
            Err(error) => error,
        };
        if !self.connection.is_autocommit() {
            let _ = run("ROLLBACK");
        }
        if !self.connection.is_autocommit() {
            return Err(AppendError::Failed(format!(
                "could not roll back after: {error}"
            )));
        }
        let error = classify(&error);
        if matches!(error, AppendError::Full(_)) {
            // Perhaps it is the log that takes the room: brought into the file, it begins anew.
            self.log_bytes = u64::MAX / 2;
        }
        Err(error)
    }
}

fn save_cursors(
    connection: &Connection,
    cursors: &BTreeMap<String, SavedCursor>,
) -> rusqlite::Result<()> {
    for (sink, cursor) in cursors {
        cursor.save(sink, connection)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
