//! Reads the spool from a position, and waits for further events.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::gaps::Gap;
use super::schema;
use super::shared::Shared;
use super::status::Status;
use super::store::is_damage;
use super::suspected_damage::SuspectedDamage;
use crate::event::{Event, Seq, UnixMillis};
use crate::telemetry::chain;

/// Why the spool could not be read. If the cause is lasting damage, the spool fails, too, and the next start salvages
/// it.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// SQLite failed.
    #[error("SQLite query failed")]
    Database(#[from] rusqlite::Error),
    /// Events are missing, and their numbers are not in a known gap.
    #[error("events {0} to {1} are missing, although they were not purged")]
    Missing(Seq, Seq),
}

/// A read returns as many rows as the caller wants, but within these bounds. A long read would delay callbacks on a
/// busy core.
const MIN_ROWS_PER_READ: usize = 500;
const MAX_ROWS_PER_READ: usize = 1000;

/// A read stops when it has this many bytes of events.
const READ_BYTES: usize = 1 << 20;

/// A reader that follows the spool.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    /// The first read opens it.
    connection: Arc<Mutex<Option<Connection>>>,
    position: Seq,
    /// Rows that were read but not returned yet.
    buffer: VecDeque<Row>,
    status: watch::Receiver<Status>,
    shared: Arc<Shared>,
    /// A read that is running on a blocking thread.
    reading: Option<JoinHandle<Result<Vec<Row>, ReadError>>>,
    suspicion: SuspectedDamage,
}

/// A number and its event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The number.
    pub seq: Seq,
    /// `None` if the event cannot be read or if a gap ends here. No number between the previous row's and this one
    /// has an event.
    pub event: Option<Arc<Event>>,
}

impl Reader {
    pub(super) fn new(path: &Path, position: Seq, shared: Arc<Shared>) -> Self {
        Self {
            path: path.to_owned(),
            connection: Arc::default(),
            position,
            buffer: VecDeque::new(),
            status: shared.status.subscribe(),
            shared,
            reading: None,
            suspicion: SuspectedDamage::default(),
        }
    }

    /// Continues reading after another position.
    pub fn seek(&mut self, position: Seq) {
        self.position = position;
        self.buffer.clear();
        self.reading = None;
    }

    /// Every event up to here was returned or no longer exists.
    #[must_use]
    pub const fn position(&self) -> Seq {
        self.position
    }

    /// Returns the next rows, at most `limit`; waits until there are some. Cancel safe.
    ///
    /// # Errors
    /// Fails if the file cannot be read; may be called again. If the file turns out to be damaged, the spool fails
    /// permanently.
    pub async fn next(&mut self, limit: usize) -> Result<Vec<Row>, ReadError> {
        let limit = limit.max(1);
        loop {
            if !self.buffer.is_empty() {
                let rows: Vec<Row> = self.buffer.drain(..limit.min(self.buffer.len())).collect();
                self.position = rows.last().map_or(self.position, |row| row.seq);
                return Ok(rows);
            }
            // If this future was dropped earlier, a read may still be running: wait for it.
            if self.reading.is_none() {
                let position = self.position;
                // This cannot fail: `shared` holds the sender.
                let _ = self.status.wait_for(|status| status.last > position).await;
                // A sink that keeps up needs no read.
                let cached = self.shared.cache.from(position.next(), limit);
                if let Some((newest, _)) = cached.last() {
                    self.position = *newest;
                    let row = |(seq, event)| Row {
                        seq,
                        event: Some(event),
                    };
                    return Ok(cached.into_iter().map(row).collect());
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
            // Missing rows are damage at once; SQLite's errors are damage only if they last.
            match &rows {
                Ok(_) => self.suspicion.clear(),
                Err(error @ ReadError::Missing(..)) => self.shared.found_damage(&error.to_string()),
                Err(error @ ReadError::Database(source)) => {
                    if is_damage(source) && self.suspicion.confirm() {
                        self.shared.found_damage(&chain(error));
                    }
                }
            }
            self.buffer = rows?.into();
        }
    }

    /// Starts to read the next rows; `limit` is how many the caller wants at once.
    fn read(&self, limit: usize) -> JoinHandle<Result<Vec<Row>, ReadError>> {
        let (path, shared) = (self.path.clone(), Arc::clone(&self.shared));
        let connection = Arc::clone(&self.connection);
        let (first, last) = {
            let status = self.status.borrow();
            (status.first, status.last)
        };
        // Purged events were confirmed by every sink, including the one that reads here.
        let expected = self.position.next().max(first);
        let rows = limit.clamp(MIN_ROWS_PER_READ, MAX_ROWS_PER_READ);
        tokio::task::spawn_blocking(move || {
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let connection = match &mut *connection {
                Some(connection) => connection,
                none => none.insert(open(&path)?),
            };
            read(connection, expected, last, rows, &shared)
        })
    }
}

/// Opens a connection for reading. Within this process only SQLite may open the file: closing any other handle to it
/// would drop SQLite's locks.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    schema::connect(path, flags)
}

pub(super) fn event(path: &Path, seq: Seq) -> Result<Option<Event>, ReadError> {
    let connection = open(path)?;
    let mut select = connection.prepare("SELECT * FROM events WHERE seq = ?1")?;
    let row = select
        .query_row([seq.0], |row| schema::decode_row(seq, row))
        .optional()?;
    Ok(row.flatten().map(|row| row.event))
}

/// The rows of those dead letters of a sink that are stored; see [`super::Spool::dead_letter_rows`].
pub(super) fn dead_letters(path: &Path, sink: &str, seqs: &[Seq]) -> Result<Vec<Row>, ReadError> {
    let connection = open(path)?;
    let columns = schema::DEAD_LETTER_EVENT;
    let select = format!("SELECT {columns} FROM dead_letters WHERE sink = ?1 AND seq = ?2");
    let mut select = connection.prepare(&select)?;
    let mut rows = Vec::new();
    let mut bytes = 0;
    for seq in seqs.iter().copied() {
        if bytes >= READ_BYTES {
            break;
        }
        let event = select
            .query_row(params![sink, seq.0], |row| {
                Ok(schema::dead_letter_event(row, 0).ok())
            })
            .optional()?
            .flatten()
            .map(Arc::new);
        bytes += event.as_ref().map_or(0, |event| event.body.len());
        rows.push(Row { seq, event });
    }
    Ok(rows)
}

/// When the oldest event after `position` was appended.
pub(super) fn appended_after(path: &Path, position: Seq) -> Result<Option<UnixMillis>, ReadError> {
    Ok(schema::appended_after(&open(path)?, position)?)
}

/// Reads at most `limit` rows from number `expected` on. `last` exists or is in a known gap.
fn read(
    connection: &Connection,
    expected: Seq,
    last: Seq,
    limit: usize,
    shared: &Shared,
) -> Result<Vec<Row>, ReadError> {
    let mut statement =
        connection.prepare_cached("SELECT * FROM events WHERE seq >= ?1 ORDER BY seq LIMIT ?2")?;
    let mut found = statement.query([expected.0, limit as u64])?;
    let mut rows = Vec::new();
    let mut bytes = 0;
    let mut expected = expected;
    while bytes < READ_BYTES
        && let Some(row) = found.next()?
    {
        let seq = Seq(row.get(0)?);
        check_gap(shared, expected, Seq(seq.0.saturating_sub(1)))?;
        expected = seq.next();
        let event = schema::decode_row(seq, row)?.map(|row| Arc::new(row.event));
        match &event {
            Some(event) => bytes += event.body.len(),
            None => shared.found_unreadable(seq),
        }
        rows.push(Row { seq, event });
    }
    // All remaining numbers up to `last` are in gaps: return the end of the gap, so that the reader moves past it.
    if rows.is_empty() {
        check_gap(shared, expected, last)?;
        let (seq, event) = (last, None);
        rows.push(Row { seq, event });
    }
    Ok(rows)
}

/// Checks that numbers without an event are in known gaps: a damaged page can hide events without an SQLite error.
fn check_gap(shared: &Shared, first: Seq, last: Seq) -> Result<(), ReadError> {
    if first > last {
        return Ok(());
    }
    // In a replay, events may be purged while they are read: every sink has confirmed them. This is read after the rows,
    // so it includes what the purge went by.
    let first = first.max(shared.confirmed().next());
    let gaps: &[Gap] = &shared.gaps;
    if first > last {
        return Ok(());
    }
    let known = gaps
        .iter()
        .map(|gap| gap.first.max(first).count_to(gap.last.min(last)));
    if known.sum::<u64>() == first.count_to(last) {
        Ok(())
    } else {
        Err(ReadError::Missing(first, last))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, Instant};

    use tempfile::TempDir;

    use super::*;
    use crate::spool::salvage::tests::database;
    use crate::spool::tests::{append_all, config};
    use crate::spool::{AppendError, Spool};

    /// Why events are refused after all reads of `failing` have failed for a while.
    async fn refusing_after_reading(failing: &Path) -> Option<AppendError> {
        let folder = TempDir::new().unwrap();
        let spool = Spool::open(&config(&folder), &["sink"]).unwrap().spool;
        append_all(&spool, 1..=60).await;
        let mut reader = spool.reader(Seq(0));
        let failing = open(failing).unwrap();
        failing.busy_timeout(Duration::ZERO).unwrap();
        *reader.connection.lock().unwrap() = Some(failing);
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(300) {
            reader.next(1).await.unwrap_err();
        }
        spool.status().refusing
    }

    #[tokio::test]
    async fn a_locked_file_is_not_damaged() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("spool.db");
        let other = database::create(&path);
        other.execute_batch("BEGIN EXCLUSIVE").unwrap();
        assert_eq!(refusing_after_reading(&path).await, None);
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_database_is_damaged() {
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
