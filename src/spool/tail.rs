//! Reading the spool from a position on, and waiting for what comes.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::store::is_damage;
use super::{Shared, Status, schema};
use crate::event::{Event, Millis, Seq, Stored};
use crate::telemetry::chain;

/// Why the spool could not be read. Where it is damaged it has failed, too: what can be read of it is
/// kept by the next start.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// SQLite.
    #[error("could not read the spool")]
    Database(#[from] rusqlite::Error),
    /// Events are not where they should be.
    #[error("events {0} to {1} are missing in the spool")]
    Missing(Seq, Seq),
}

/// Rows that one read takes: as many as are wanted at once, within these bounds. On a core that callbacks keep busy,
/// they wait for it.
const READ_AT_LEAST: usize = 500;
const READ_AT_MOST: usize = 1000;

/// Bytes of events after which a read stops.
const READ_BYTES: usize = 1 << 20;

/// A reader that follows the spool.
#[derive(Debug)]
pub struct Tail {
    connection: Arc<Mutex<Connection>>,
    position: Seq,
    /// Rows that were read and not yet returned.
    ahead: VecDeque<Row>,
    status: watch::Receiver<Status>,
    shared: Arc<Shared>,
    /// A read under way on a blocking thread.
    reading: Option<JoinHandle<Result<Vec<Row>, ReadError>>>,
}

/// A row of the spool as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// An event.
    Event(Stored),
    /// What is there is not what was written: the event is lost.
    Unreadable(Seq),
    /// No event has the numbers up to this one; that is known.
    Missing(Seq),
}

impl Row {
    /// The event's number.
    #[must_use]
    pub const fn seq(&self) -> Seq {
        match self {
            Self::Event(stored) => stored.seq,
            Self::Unreadable(seq) | Self::Missing(seq) => *seq,
        }
    }
}

impl Tail {
    pub(super) fn new(path: &Path, position: Seq, shared: Arc<Shared>) -> Result<Self, ReadError> {
        Ok(Self {
            connection: Arc::new(Mutex::new(open(path)?)),
            position,
            ahead: VecDeque::new(),
            status: shared.status.subscribe(),
            shared,
            reading: None,
        })
    }

    /// Everything up to here was returned, or is gone.
    #[must_use]
    pub const fn position(&self) -> Seq {
        self.position
    }

    /// The next rows, at most `limit` of them; waits until there are some. Cancel safe.
    ///
    /// # Errors
    /// Fails where the file cannot be read; may be called again. Where it turns out to be damaged the spool
    /// fails for good.
    pub async fn next(&mut self, limit: usize) -> Result<Vec<Row>, ReadError> {
        let limit = limit.max(1);
        loop {
            if self.ahead.len() >= limit || !self.ahead.is_empty() && !self.has_read() {
                let rows: Vec<Row> = self.ahead.drain(..limit.min(self.ahead.len())).collect();
                self.position = rows.last().map_or(self.position, Row::seq);
                self.read_ahead(limit);
                return Ok(rows);
            }
            if self.reading.is_none() {
                let position = self.position;
                // The sender is in `shared`: it cannot be gone.
                let _ = self.status.wait_for(|status| status.last > position).await;
                let fresh = self.shared.fresh.from(position.next(), limit);
                if let Some(newest) = fresh.last() {
                    self.position = newest.seq;
                    return Ok(fresh.into_iter().map(Row::Event).collect());
                }
                self.reading = Some(self.read(limit));
            }
            let Some(reading) = &mut self.reading else {
                continue;
            };
            let outcome = reading.await;
            self.reading = None;
            let Ok(rows) = outcome else {
                // The runtime is shutting down.
                return std::future::pending().await;
            };
            let place = self.read_to();
            match &rows {
                Ok(_) => self.shared.trust(place),
                Err(error @ ReadError::Missing(..)) => self.shared.found_damage(&error.to_string()),
                Err(error @ ReadError::Database(source)) if is_damage(source) => {
                    self.shared.doubt(place, &chain(error));
                }
                Err(_) => {}
            }
            let rows = rows?;
            for row in &rows {
                if let Row::Unreadable(seq) = row {
                    self.shared.found_unreadable(*seq);
                }
            }
            self.ahead.extend(rows);
        }
    }

    /// Reads on while what was read is made use of, if that is not enough for long.
    fn read_ahead(&mut self, limit: usize) {
        let behind = self.read_to() < self.status.borrow().last;
        if behind && self.reading.is_none() && self.ahead.len() < READ_AT_LEAST {
            self.reading = Some(self.read(limit));
        }
    }

    /// Whether a read is over whose rows were not taken yet.
    fn has_read(&self) -> bool {
        self.reading.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Everything up to here was read, and taken.
    fn read_to(&self) -> Seq {
        self.ahead.back().map_or(self.position, Row::seq)
    }

    /// Begins to read what comes next; `limit` is how many rows are wanted at once.
    fn read(&self, limit: usize) -> JoinHandle<Result<Vec<Row>, ReadError>> {
        let connection = Arc::clone(&self.connection);
        let (first, last) = {
            let status = self.status.borrow();
            (status.first, status.last)
        };
        // What was deleted had been confirmed to everybody, also to who reads here.
        let expected = self.read_to().next().max(first);
        let rows = limit.clamp(READ_AT_LEAST, READ_AT_MOST);
        tokio::task::spawn_blocking(move || {
            let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            read(&connection, expected, last, rows)
        })
    }
}

/// A connection for reading. It must come from SQLite, in this process: any other way to close the file
/// would drop SQLite's locks.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    schema::connect(path, flags)
}

pub(super) fn event(path: &Path, seq: Seq) -> Result<Option<Event>, ReadError> {
    let row = "SELECT seq, id, kind, checksum, body FROM events WHERE seq = ?1";
    let event = open(path)?.query_row(row, [seq.0], |row| Ok(decode(seq, row)));
    Ok(event.optional()?.flatten())
}

/// When the oldest event after `position` was appended.
pub(super) fn appended_after(path: &Path, position: Seq) -> Result<Option<Millis>, ReadError> {
    let millis: Option<u64> = open(path)?
        .query_row(
            "SELECT appended_at FROM events WHERE seq > ?1 ORDER BY seq LIMIT 1",
            [position.0],
            |row| row.get(0),
        )
        .optional()?;
    Ok(millis.and_then(Millis::new))
}

/// Reads at most `limit` rows from number `expected` on. `last` is known to be there, or known to be gone.
fn read(
    connection: &Connection,
    expected: Seq,
    last: Seq,
    limit: usize,
) -> Result<Vec<Row>, ReadError> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, id, kind, checksum, body FROM events WHERE seq >= ?1 ORDER BY seq LIMIT ?2",
    )?;
    let mut found = statement.query([expected.0, limit as u64])?;
    let mut rows = Vec::new();
    let mut bytes = 0;
    let mut expected = expected;
    while bytes < READ_BYTES
        && let Some(row) = found.next()?
    {
        let seq = Seq(row.get(0)?);
        if seq != expected {
            check_gap(connection, expected, Seq(seq.0.saturating_sub(1)))?;
        }
        expected = seq.next();
        rows.push(match decode(seq, row) {
            Some(event) => {
                bytes += event.bytes.len();
                Row::Event(Stored { seq, event })
            }
            None => Row::Unreadable(seq),
        });
    }
    if rows.is_empty() {
        if expected <= last {
            check_gap(connection, expected, last)?;
        }
        rows.push(Row::Missing(last));
    }
    Ok(rows)
}

/// Events that are not found must be known to be missing: a damaged page can hide others without an error
/// of SQLite's.
fn check_gap(connection: &Connection, first: Seq, last: Seq) -> Result<(), ReadError> {
    let known: u64 = connection
        .prepare_cached(
            "SELECT coalesce(sum(min(last_seq, ?2) - max(first_seq, ?1) + 1), 0) FROM gaps
             WHERE first_seq <= ?2 AND last_seq >= ?1",
        )?
        .query_row([first.0, last.0], |row| row.get(0))?;
    if first <= last && known == last.0 + 1 - first.0 {
        Ok(())
    } else {
        Err(ReadError::Missing(first, last))
    }
}

/// A row's event; none where the row is not what was written.
fn decode(seq: Seq, row: &rusqlite::Row<'_>) -> Option<Event> {
    let id: [u8; 16] = row.get(1).ok()?;
    let kind: u8 = row.get(2).ok()?;
    let checksum: u32 = row.get(3).ok()?;
    let body = row.get_ref(4).ok()?.as_blob().ok()?;
    if schema::checksum(seq.0, &id, kind, body) != checksum {
        return None;
    }
    Some(Event {
        kind: schema::kind_of_row(kind)?,
        id: Uuid::from_bytes(id),
        bytes: Bytes::copy_from_slice(body),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, Instant};

    use tempfile::TempDir;

    use super::*;
    use crate::spool::rescue::tests::database;
    use crate::spool::tests::{append_all, config};
    use crate::spool::{AppendError, Spool};

    /// Why events are refused after every read has failed for a while, as those of this file do.
    async fn refusing_after_reading(failing: &Path) -> Option<AppendError> {
        let folder = TempDir::new().unwrap();
        let spool = Spool::open(&config(&folder), &["sink"]).unwrap().spool;
        append_all(&spool, 1..=60).await;
        let mut tail = spool.tail(Seq(0)).unwrap();
        let failing = open(failing).unwrap();
        failing.busy_timeout(Duration::ZERO).unwrap();
        *tail.connection.lock().unwrap() = failing;
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(300) {
            tail.next(1).await.unwrap_err();
        }
        spool.status().refusing
    }

    #[tokio::test]
    async fn what_was_read_meanwhile_is_taken_before_the_rest_runs_out() {
        let folder = TempDir::new().unwrap();
        let spool = Spool::open(&config(&folder), &["sink"]).unwrap().spool;
        append_all(&spool, 1..=1200).await;
        let mut tail = spool.tail(Seq(0)).unwrap();
        for _ in 0..3 {
            assert_eq!(tail.next(300).await.unwrap().len(), 300);
            while tail.reading.is_some() && !tail.has_read() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_not_damaged() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("spool.db");
        let other = database::create(&path);
        other.execute_batch("BEGIN EXCLUSIVE").unwrap();
        assert_eq!(refusing_after_reading(&path).await, None);
    }

    #[tokio::test]
    async fn what_is_read_and_makes_no_sense_is_damaged() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("spool.db");
        fs::write(&path, "a diary\n".repeat(1000)).unwrap();
        let refusing = refusing_after_reading(&path).await;
        assert!(
            matches!(refusing, Some(AppendError::Damaged(_))),
            "{refusing:?}"
        );
    }
}
