//! Writes the file: synchronous, with one owner and no locks. The caller chooses the thread.

mod errors;
mod open;
mod purge;
mod space;

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, params};
use uuid::Uuid;

use super::append::{AppendError, Appended};
use super::config::Config;
use super::cursor::Cursor;
use super::dead_letter::DeadLetter;
use super::files::Lock;
use super::gaps::{self, Gap};
use super::quota::Usage;
use super::recent_ids::RecentIds;
use super::salvage::SalvageReport;
use super::saved_cursor::SavedCursor;
use super::watermark::Watermark;
use super::{quota, schema};
use crate::event::{Event, Kind, Seq, UnixMillis};

use errors::classify;
pub(super) use errors::is_damage;
pub use open::OpenError;
pub(super) use open::SALVAGE;
use purge::Purge;

/// The open file.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    /// The settings; `path` has no symbolic links.
    pub(super) config: Config,
    /// Distinguishes this spool from any other.
    pub(super) spool_id: Uuid,
    /// The oldest event kept; if there is none, the next one.
    pub(super) first: Seq,
    next: Seq,
    /// The usage after the last transaction. It is accurate because nobody else writes.
    pub(super) usage: Usage,
    recent: RecentIds,
    /// The cursors that are saved on disk.
    pub(super) saved_cursors: BTreeMap<String, SavedCursor>,
    /// How many rows the table `dead_letters` has.
    pub(super) dead_letters: u64,
    /// Bytes of the bodies in the table `dead_letters`.
    dead_letter_bytes: u64,
    /// Bytes of rejected callbacks that had not been forwarded when they were last counted.
    rejected_bytes: u64,
    /// The damage that this start has found.
    pub(super) report: SalvageReport,
    pub(super) lock: Arc<Lock>,
}

impl Store {
    /// The newest event; if there is none, the number before `first`.
    pub(super) const fn last(&self) -> Seq {
        Seq(self.next.0 - 1)
    }

    /// The ranges of numbers that no event has.
    pub(super) fn gaps(&self) -> Result<Vec<Gap>, AppendError> {
        gaps::load(&self.connection).map_err(|error| classify(&error))
    }

    /// Appends a group in one transaction together with the cursors, and syncs it.
    ///
    /// The outer error applies to the whole group: none of it is stored, and its numbers are assigned again.
    pub(super) fn append(
        &mut self,
        events: &[Arc<Event>],
        cursors: &BTreeMap<String, Cursor>,
    ) -> Result<Vec<Result<Appended, AppendError>>, AppendError> {
        let wanted = events.iter().map(|event| quota::cost(event.body.len()));
        let mut free = self.make_space(wanted.sum(), cursors)?;
        let mut next = self.next;
        let mut rejected_bytes = self.rejected_bytes;
        let mut outcomes = Vec::with_capacity(events.len());
        let mut to_insert = Vec::with_capacity(events.len());
        // Check the limits before the transaction: an event that exceeds one is refused alone, not with its group.
        for event in events {
            let cost = quota::cost(event.body.len());
            // This also finds an id that is repeated within the group.
            if let Some(first) = self.recent.find(&event.id) {
                outcomes.push(Ok(Appended::Repeated(first)));
                continue;
            }
            let rejected = match event.kind {
                Kind::Rejected => event.body.len() as u64,
                _ => 0,
            };
            if cost > free.bytes {
                outcomes.push(Err(AppendError::Full(self.explain(free))));
            } else if rejected > 0 && rejected > self.dead_letter_budget(rejected_bytes) {
                outcomes.push(Err(self.dead_letters_full()));
            } else {
                self.recent.insert(event.id, next);
                free.bytes -= cost;
                rejected_bytes += rejected;
                outcomes.push(Ok(Appended::New(next)));
                to_insert.push((next, &**event));
                next = next.next();
            }
        }
        if to_insert.is_empty() {
            return Ok(outcomes);
        }

        let purge = self.purge_with_insert(to_insert.len(), cursors);
        let moved = self.moved(cursors);
        let mut outcome = self.insert(&to_insert, &moved, purge);
        if purge.is_some() && !matches!(outcome, Ok(()) | Err(AppendError::Failed(_))) {
            // If the purge fails, the events are inserted without it.
            outcome = self.insert(&to_insert, &moved, None);
        }
        if let Err(error) = outcome {
            self.recent.roll_back(to_insert.len());
            return Err(error);
        }
        self.next = next;
        self.rejected_bytes = rejected_bytes;
        self.saved_cursors.extend(moved);
        self.write_watermark(cursors);
        self.recent.trim();
        Ok(outcomes)
    }

    /// Inserts events, saves the cursors that have moved, and purges other events, in one transaction.
    fn insert(
        &mut self,
        events: &[(Seq, &Event)],
        moved: &BTreeMap<String, SavedCursor>,
        purge: Option<Purge>,
    ) -> Result<(), AppendError> {
        let now = UnixMillis::now().as_millis();
        self.transaction(|connection| {
            if let Some(purge) = purge {
                purge.run(connection)?;
            }
            let mut insert = connection.prepare_cached(schema::INSERT)?;
            for (seq, event) in events {
                schema::insert(&mut insert, *seq, now, event)?;
            }
            save_cursors(connection, moved)
        })?;
        self.first = purge.map_or(self.first, Purge::first_after);
        Ok(())
    }

    /// Saves the cursors that have moved, without a sync: a power cut may lose the move but not the row.
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
        self.write_watermark(cursors);
        Ok(())
    }

    /// Writes something and syncs it, to check whether writing works again.
    pub(super) fn probe(&mut self) -> Result<(), AppendError> {
        let next = self.next;
        self.transaction(|connection| schema::save_next_seq(connection, next))
    }

    /// Writes the high-water mark beside the file. If that fails, the old mark stays: nothing is lost, but a later
    /// loss of events might not be detected in full.
    pub(super) fn write_watermark(&self, cursors: &BTreeMap<String, Cursor>) {
        let _ = self.lock.write_watermark(Watermark {
            spool_id: self.spool_id,
            last: self.last(),
            confirmed: self.forwarded(cursors),
        });
    }

    /// Stores events that a sink could publish neither to its topic nor as dead letters, all in one transaction.
    /// Rejected callbacks were checked against `spool.max_dead_letter_bytes` when they were appended.
    pub(super) fn store_dead_letters(
        &mut self,
        dead_letters: &[DeadLetter],
        cursors: &BTreeMap<String, Cursor>,
    ) -> Result<(), AppendError> {
        let wanted = dead_letters
            .iter()
            .map(|dead_letter| quota::cost(dead_letter.event.body.len()))
            .sum();
        let free = self.make_space(wanted, cursors)?;
        if free.bytes < wanted {
            return Err(AppendError::Full(self.explain(free)));
        }
        // Rejected callbacks were counted when they were appended.
        let new = dead_letters
            .iter()
            .filter(|dead_letter| dead_letter.event.kind != Kind::Rejected)
            .map(|dead_letter| dead_letter.event.body.len() as u64)
            .sum::<u64>();
        if new > 0 && new > self.dead_letter_budget(self.rejected_bytes) {
            return Err(self.dead_letters_full());
        }
        let now = UnixMillis::now().as_millis();
        let (mut stored, mut stored_bytes) = (0, 0);
        self.transaction(|connection| {
            // After a restart or a retry, a sink may store a dead letter again: the last reason counts.
            let mut update = connection.prepare_cached(
                "UPDATE dead_letters SET at = ?3, reason = ?4, detail = ?5 WHERE sink = ?1 AND seq = ?2",
            )?;
            let mut insert = connection.prepare_cached(
                "INSERT INTO dead_letters VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?;
            for DeadLetter {
                sink,
                seq,
                event,
                reason,
                detail,
            } in dead_letters
            {
                if update.execute(params![sink, seq.0, now, reason, detail])? > 0 {
                    continue;
                }
                insert.execute(params![
                    sink,
                    seq.0,
                    now,
                    reason,
                    detail,
                    event.id.as_bytes(),
                    schema::kind_to_row(event.kind),
                    event.conversation,
                    event.subject,
                    event.group_type,
                    event.time.as_millis(),
                    schema::text(&event.body),
                ])?;
                stored += 1;
                stored_bytes += event.body.len() as u64;
            }
            Ok(())
        })?;
        self.dead_letters += stored;
        self.dead_letter_bytes += stored_bytes;
        Ok(())
    }

    /// Deletes dead letters, named by sink and number, in one transaction. Returns how many there were.
    pub(super) fn remove_dead_letters(
        &mut self,
        dead_letters: &[(String, Seq)],
    ) -> Result<u64, AppendError> {
        let (mut removed, mut removed_bytes) = (0, 0);
        self.transaction(|connection| {
            let mut delete = connection.prepare_cached(
                "DELETE FROM dead_letters WHERE sink = ?1 AND seq = ?2 RETURNING octet_length(body)",
            )?;
            for (sink, seq) in dead_letters {
                let bytes: Option<u64> = delete
                    .query_row(params![sink, seq.0], |row| row.get(0))
                    .optional()?;
                removed += u64::from(bytes.is_some());
                removed_bytes += bytes.unwrap_or_default();
            }
            Ok(())
        })?;
        self.dead_letters = self.dead_letters.saturating_sub(removed);
        self.dead_letter_bytes = self.dead_letter_bytes.saturating_sub(removed_bytes);
        Ok(removed)
    }

    /// How many more bytes of dead letters fit into `spool.max_dead_letter_bytes`.
    const fn dead_letter_budget(&self, rejected_bytes: u64) -> u64 {
        let used = self.dead_letter_bytes + rejected_bytes;
        self.config.max_dead_letter_bytes.0.saturating_sub(used)
    }

    fn dead_letters_full(&self) -> AppendError {
        let limit = self.config.max_dead_letter_bytes;
        AppendError::DeadLettersFull(format!(
            "dead letters have reached spool.max_dead_letter_bytes ({limit}); publish or delete some with `recall-relay \
             spool dead-letters`, or raise it"
        ))
    }

    /// Counts the bytes of rejected callbacks that are not forwarded yet, if there may be any.
    pub(super) fn count_rejected(
        &mut self,
        cursors: &BTreeMap<String, Cursor>,
    ) -> Result<(), AppendError> {
        if self.rejected_bytes > 0 {
            self.rejected_bytes = rejected_bytes(&self.connection, self.forwarded(cursors))
                .map_err(|error| classify(&error))?;
        }
        Ok(())
    }

    /// The cursors that differ from those on disk.
    fn moved(&self, cursors: &BTreeMap<String, Cursor>) -> BTreeMap<String, SavedCursor> {
        let now = |cursor: &Cursor| SavedCursor {
            seq: cursor.position(),
            pins: true,
        };
        cursors
            .iter()
            .map(|(sink, cursor)| (sink.clone(), now(cursor)))
            .filter(|(sink, cursor)| self.saved_cursors.get(sink) != Some(cursor))
            .collect()
    }

    /// Runs `work` with commits that are not synced; the next synced commit syncs them, too.
    fn unsynced<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, AppendError>,
    ) -> Result<T, AppendError> {
        self.connection
            .execute_batch("PRAGMA synchronous = normal")
            .map_err(|error| classify(&error))?;
        let outcome = work(self);
        // Even after an error: a callback must never be answered OK for a commit that was not synced.
        self.connection
            .execute_batch("PRAGMA synchronous = full")
            .map_err(|error| {
                AppendError::Failed(format!("could not set synchronous = full again: {error}"))
            })?;
        outcome
    }

    /// Runs `work` in one transaction; rolls it back if it fails.
    fn transaction(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), AppendError> {
        let run = |sql: &str| self.connection.prepare_cached(sql)?.execute([]).map(|_| ());
        let outcome = run("BEGIN IMMEDIATE")
            .and_then(|()| work(&self.connection))
            .and_then(|()| Usage::read(&self.connection))
            .and_then(|usage| run("COMMIT").map(|()| usage));
        let error = match outcome {
            Ok(usage) => {
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
                "could not roll back a transaction that failed with: {error}"
            )));
        }
        let error = classify(&error);
        if matches!(error, AppendError::Full(_)) {
            // The WAL may have used up the space.
            self.checkpoint_all()?;
        }
        Err(error)
    }
}

/// Bytes of the rejected callbacks after `seq`.
fn rejected_bytes(connection: &Connection, seq: Seq) -> rusqlite::Result<u64> {
    let sum = "SELECT coalesce(sum(octet_length(body)), 0) FROM events WHERE kind = 3 AND seq > ?1";
    let mut sum = connection.prepare_cached(sum)?;
    sum.query_row([seq.0], |row| row.get(0))
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
