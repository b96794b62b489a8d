//! Reading the spool from a position on, and waiting for what comes.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{Shared, Status, schema};
use crate::event::{Event, Kind, Millis, Seq, Stored};

/// Why the spool could not be read.
#[derive(Debug, thiserror::Error)]
#[error("could not read the spool")]
pub struct ReadError(#[from] rusqlite::Error);

/// Rows that one read returns at most, and the bytes after which it stops.
const READ_ROWS: usize = 1000;
const READ_BYTES: usize = 1 << 20;

/// A reader that follows the spool.
#[derive(Debug)]
pub struct Tail {
    connection: Arc<Mutex<Connection>>,
    position: Seq,
    status: watch::Receiver<Status>,
    shared: Arc<Shared>,
    reading: Option<Reading>,
}

/// A read under way on a blocking thread.
#[derive(Debug)]
struct Reading {
    /// The newest event when it began: all up to here that are not found are gone.
    last: Seq,
    rows: JoinHandle<rusqlite::Result<Vec<Row>>>,
}

/// A row of the spool as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// An event.
    Event(Stored),
    /// What is there is not what was written: the event is lost.
    Unreadable(Seq),
}

impl Row {
    /// The event's number.
    #[must_use]
    pub const fn seq(&self) -> Seq {
        match self {
            Self::Event(stored) => stored.seq,
            Self::Unreadable(seq) => *seq,
        }
    }
}

impl Tail {
    pub(super) fn new(path: &Path, position: Seq, shared: Arc<Shared>) -> Result<Self, ReadError> {
        Ok(Self {
            connection: Arc::new(Mutex::new(open(path)?)),
            position,
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
    /// Fails where the file cannot be read; may be called again.
    pub async fn next(&mut self, limit: usize) -> Result<Vec<Row>, ReadError> {
        loop {
            let position = self.position;
            if self.reading.is_none() {
                // The sender is in `shared`: it cannot be gone.
                let _ = self.status.wait_for(|status| status.last > position).await;
            }
            let reading = self.reading.get_or_insert_with(|| {
                let connection = Arc::clone(&self.connection);
                let limit = limit.clamp(1, READ_ROWS);
                Reading {
                    last: self.status.borrow().last,
                    rows: tokio::task::spawn_blocking(move || {
                        let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
                        read(&connection, position, limit)
                    }),
                }
            });
            let outcome = (&mut reading.rows).await;
            let last = reading.last;
            self.reading = None;
            let Ok(rows) = outcome else {
                // The runtime is shutting down.
                return std::future::pending().await;
            };
            let rows = rows?;
            for row in &rows {
                if let Row::Unreadable(seq) = row {
                    self.shared.found_unreadable(*seq);
                }
            }
            match rows.last() {
                Some(newest) => {
                    self.position = newest.seq();
                    return Ok(rows);
                }
                None => self.position = self.position.max(last),
            }
        }
    }
}

/// A connection for reading. It must come from SQLite, in this process: any other way to close the file
/// would drop SQLite's locks.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
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

fn read(connection: &Connection, after: Seq, limit: usize) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, id, kind, checksum, body FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let mut found = statement.query([after.0, limit as u64])?;
    let mut rows = Vec::new();
    let mut bytes = 0;
    while bytes < READ_BYTES
        && let Some(row) = found.next()?
    {
        let seq = Seq(row.get(0)?);
        rows.push(match decode(seq, row) {
            Some(event) => {
                bytes += event.bytes.len();
                Row::Event(Stored { seq, event })
            }
            None => Row::Unreadable(seq),
        });
    }
    Ok(rows)
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
        kind: match kind {
            0 => Kind::Recalled,
            1 => Kind::Rejected,
            _ => return None,
        },
        id: Uuid::from_bytes(id),
        bytes: Bytes::copy_from_slice(body),
    })
}
