//! The spool: every event between its callback's answer and its broker's confirm, in one SQLite file.
//!
//! Promises:
//! - [`Spool::append`] returns `Ok` only after the commit that holds the event was synced to disk;
//! - events are read in the order of their numbers, and no two committed events have the same number;
//! - no event is purged before every sink that pins it has confirmed it, however old it is;
//! - an event whose id is among the recent ones is not appended again;
//! - what cannot be kept is refused, never dropped;
//! - a damaged file does not stop a start: what can be read of it is kept, what is lost is counted.
//!
//! It does not work on a network file system (WAL needs shared memory), and it does not replicate: the spool
//! is only as durable as its disk.
//!
//! One thread owns the writing connection. It takes everything that is waiting, commits it in one transaction
//! and wakes all waiters. Cursors are saved in the same transaction, or without a sync of their own while
//! nothing is appended: a cursor that is lost only means that events are published again.

mod event_cache;
mod files;
mod queue;
mod quota;
mod reader;
mod recent_ids;
mod salvage;
mod saved_cursor;
mod schema;
mod shared;
mod stall;
mod store;
mod watermark;
mod writer;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::timeout;
use uuid::Uuid;

pub use reader::{ReadError, Reader, Row};
pub use salvage::{Error as SalvageError, Quarantined, SalvageReport};
pub use store::{DeadLetter, OpenError};

use crate::event::{Event, Seq, UnixMillis};
use crate::setting::{self, Period, Size};
use queue::{Append, Queue, Refused, WriterCommand};
use shared::Shared;

/// Settings of the spool.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The database file; it must be on a local disk. Its folder is created if it is missing.
    #[serde(deserialize_with = "setting::text")]
    pub path: PathBuf,
    /// If the used pages reach this size, forwarded events are purged; if that is not enough, callbacks are
    /// refused. If it is too small, a long outage of a broker fills it; if it is too large, the disk is full first.
    pub max_bytes: Size,
    /// Disk space that is left alone: free space and the file's free pages together never go below.
    pub reserve: Size,
    /// How long events stay after they were appended. Events that are not forwarded stay longer; with zero, events
    /// are purged once they are forwarded.
    pub retention: Period,
    /// How many of the latest ids are remembered to recognise a repeated callback. 40 bytes of memory
    /// each.
    #[serde(deserialize_with = "setting::text")]
    pub recent_ids: usize,
    /// How many callbacks may wait for a commit; more are refused. Each holds its body in memory.
    #[serde(deserialize_with = "setting::text")]
    pub max_waiting: usize,
    /// Bytes of dead letters: of rejected callbacks that are not forwarded yet, and of the table of events that
    /// were accepted nowhere. Beyond it a rejected callback is not kept, and an event that the dead letters refuse
    /// too counts as not forwarded.
    pub max_dead_letter_bytes: Size,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: "data/spool.db".into(),
            max_bytes: Size(1 << 30),
            reserve: Size(64 << 20),
            retention: Period(Duration::from_secs(24 * 60 * 60)),
            recent_ids: 100_000,
            max_waiting: 4096,
            max_dead_letter_bytes: Size(64 << 20),
        }
    }
}

/// How long closing waits for the disk.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What became of an event that was to be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is on disk now.
    New(Seq),
    /// An event with the same id is among the recent ones; it may have been purged since.
    Repeated,
}

/// Why an event was not appended. It is not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// `spool.max_bytes` is reached by events that are not forwarded yet, or the disk is full.
    #[error("spool is full: {0}")]
    Full(String),
    /// `spool.max_dead_letter_bytes` is reached.
    #[error("{0}")]
    DeadLettersFull(String),
    /// `spool.max_waiting` callbacks wait for a commit already.
    #[error("too many callbacks are waiting for the disk")]
    Busy,
    /// The commit failed; a later one may succeed.
    #[error("spool could not write: {0}")]
    Io(String),
    /// What was written can no longer be trusted: the process must end and start again.
    #[error("spool failed: {0}")]
    Failed(String),
    /// The file is not what was written: the process must end, and the next start salvages what it holds.
    #[error("spool is damaged: {0}; the next start keeps what can be read of it")]
    Damaged(String),
}

impl AppendError {
    /// Whether nothing can be appended any more by this process.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Damaged(_))
    }
}

/// What the spool holds, and whether it takes more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Why no event can be appended now; none while it can.
    pub refusing: Option<AppendError>,
    /// The oldest event kept is this one, or the next to come.
    pub first: Seq,
    /// The newest event is this one, or the one before the first.
    pub last: Seq,
    /// Bytes of all used pages.
    pub used_bytes: u64,
}

impl Status {
    /// How many numbers there are from the oldest event kept to the newest, gaps included.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        (self.last.0 + 1).saturating_sub(self.first.0)
    }
}

/// A sink's cursor: the last event up to which all are confirmed.
#[derive(Debug, Clone)]
pub struct Cursor(Arc<AtomicU64>);

impl Cursor {
    fn new(seq: Seq) -> Self {
        Self(Arc::new(AtomicU64::new(seq.0)))
    }

    /// Where it stands.
    #[must_use]
    pub fn position(&self) -> Seq {
        Seq(self.0.load(Ordering::Acquire))
    }

    /// Moves it forward; it never moves back. It is saved with the next commit, or soon.
    pub fn advance(&self, seq: Seq) {
        self.0.fetch_max(seq.0, Ordering::AcqRel);
    }
}

/// A handle to the open spool; cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool {
    queue: Arc<QueueHandle>,
    shared: Arc<Shared>,
    path: PathBuf,
    writer: Arc<Mutex<Option<std::thread::JoinHandle<()>>>>,
}

/// Closes the writer's queue when the last handle is dropped.
#[derive(Debug)]
struct QueueHandle(Arc<Queue>);

impl Drop for QueueHandle {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A spool that was just opened, and what it found.
#[derive(Debug)]
pub struct Opened {
    /// The spool.
    pub spool: Spool,
    /// Sinks that are not configured but whose cursors still pin events, and how many.
    pub orphans: Vec<(String, u64)>,
}

impl Spool {
    /// Opens the spool, creating it where there is none, and starts its writer. A sink that is new
    /// starts at the oldest event kept. Blocks.
    ///
    /// # Errors
    /// Fails where another process has it open, where it is not ours or of a newer version, and where
    /// it cannot be read or written.
    pub fn open(config: &Config, sinks: &[&str]) -> Result<Opened, OpenError> {
        writer::open(config, sinks)
    }

    /// Appends an event, or finds that it is there. Waits until the commit that holds it is on disk.
    ///
    /// # Errors
    /// Tells why the event is not kept. Dropping the future does not take the event back.
    pub async fn append(&self, event: Event) -> Result<Appended, AppendError> {
        self.append_from(event, None).await
    }

    /// As [`Self::append`]; `permit` is held while the event waits, even if the future is dropped.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn append_from(
        &self,
        event: Event,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Appended, AppendError> {
        let (reply, outcome) = oneshot::channel();
        let event = Arc::new(event);
        let append = Append {
            event,
            reply,
            permit,
        };
        match self.queue.0.append(append).await {
            Ok(()) => outcome.await.unwrap_or_else(|_| Err(closed())),
            Err(Refused::Full) => Err(AppendError::Busy),
            Err(Refused::Closed) => Err(closed()),
        }
    }

    /// Keeps events that neither the broker's topic nor its dead letters took, until somebody looks at them.
    /// Waits until they are on disk, all of them or none.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn store_dead_letters(&self, letters: Vec<DeadLetter>) -> Result<(), AppendError> {
        let (reply, outcome) = oneshot::channel();
        self.put(WriterCommand::StoreDeadLetters { letters, reply })?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Reads the events after `position`, and those to come.
    #[must_use]
    pub fn reader(&self, position: Seq) -> Reader {
        Reader::new(&self.path, position, Arc::clone(&self.shared))
    }

    /// Distinguishes this spool from any other, but not from its copies: a random number from when it was made.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.shared.spool_id
    }

    /// The event of a number; none where there is none, or it is damaged. Blocks.
    ///
    /// # Errors
    /// Fails where the file cannot be read.
    pub fn event(&self, seq: Seq) -> Result<Option<Event>, ReadError> {
        reader::event(&self.path, seq)
    }

    /// When the oldest event after `position` was appended. Blocks.
    ///
    /// # Errors
    /// Fails where the file cannot be read.
    pub fn appended_after(&self, position: Seq) -> Result<Option<UnixMillis>, ReadError> {
        reader::appended_after(&self.path, position)
    }

    /// A configured sink's cursor.
    #[must_use]
    pub fn cursor(&self, sink: &str) -> Option<Cursor> {
        self.shared.cursors.get(sink).cloned()
    }

    /// What it holds now, and whether it takes more.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = self.shared.status.borrow().clone();
        if let (None, Some(stuck)) = (&status.refusing, self.shared.stall.stuck()) {
            let reason = format!("the disk has not answered for {} s", stuck.as_secs());
            status.refusing = Some(AppendError::Io(reason));
        }
        status
    }

    /// Logs when the disk hangs and when it has recovered. The writer cannot log this: it is blocked. Never
    /// returns.
    pub async fn watch(&self) -> Infallible {
        self.shared.stall.watch().await
    }

    /// How many events could not be read back since the start.
    #[must_use]
    pub fn unreadable(&self) -> u64 {
        self.shared.unreadable().len() as u64
    }

    /// How many events were kept once and are lost, by damage that this or an earlier start has found.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let lost = self.shared.gaps.iter().filter(|gap| gap.lost);
        lost.map(|gap| gap.last.0 + 1 - gap.first.0).sum()
    }

    /// What this start has found to be damaged.
    #[must_use]
    pub fn report(&self) -> &SalvageReport {
        &self.shared.report
    }

    /// Quarantined files beside the spool that nobody has removed yet.
    #[must_use]
    pub fn quarantined(&self) -> Vec<PathBuf> {
        self.shared.quarantined().clone()
    }

    /// Waits until the spool fails for good.
    pub async fn failed(&self) -> AppendError {
        self.shared.failed.cancelled().await;
        let refusing = self.shared.status.borrow().refusing.clone();
        refusing.unwrap_or_else(closed)
    }

    /// Commits what is waiting, saves the cursors and closes the file. Ends within a bounded time, also
    /// where the disk does not.
    pub async fn close(self) {
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // Where it cannot be told it is about to end.
        let _ = self.put(WriterCommand::Close);
        let closed = async {
            if let Some(writer) = writer {
                let _ = tokio::task::spawn_blocking(move || writer.join()).await;
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, closed).await;
    }

    fn put(&self, command: WriterCommand) -> Result<(), AppendError> {
        self.queue.0.put(command).map_err(|_| closed())
    }
}

fn closed() -> AppendError {
    AppendError::Failed("it is closed".to_owned())
}

/// Lets go of the events that the cursor of a sink pins. Blocks; the relay must not be running.
///
/// # Errors
/// As [`Spool::open`], and where there is no spool; `Ok(false)` where no such cursor is kept.
pub fn forget(config: &Config, sink: &str) -> Result<bool, OpenError> {
    if !config.path.exists() {
        return Err(OpenError::Missing(config.path.clone()));
    }
    let mut store = store::Store::open(config)?;
    store.report.log();
    let forgotten = store.forget(sink)?;
    store.write_watermark(&BTreeMap::new());
    Ok(forgotten)
}

#[cfg(test)]
mod tests;
