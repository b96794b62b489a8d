//! The spool: one SQLite file that keeps every event from its callback's answer until its brokers confirm it.
//!
//! Promises:
//! - [`Spool::append`] returns `Ok` only after the commit that contains the event was synced to disk;
//! - events are read in the order of their numbers, and no two committed events have the same number;
//! - no event is purged before every sink that pins it has confirmed it, however old it is;
//! - an event whose id is among the recent ones is not appended again;
//! - an event that cannot be stored is refused, never dropped;
//! - a damaged file does not prevent a start: events that can be read from it are kept, lost ones are counted.
//!
//! It does not work on a network file system (WAL needs shared memory), and it does not replicate: the spool is only
//! as durable as its disk.
//!
//! One thread owns the writing connection. It takes everything that is queued, commits it in one transaction and
//! wakes all waiters. It saves the cursors in the same transaction or, while nothing is appended, in a commit that is
//! not synced: if a cursor is lost, events are only published again.

mod append;
mod config;
mod cursor;
mod dead_letter;
mod event_cache;
mod files;
mod fill;
mod gaps;
mod inspect;
mod offline;
mod permissions;
mod probe;
mod queue;
mod quota;
mod reader;
mod recent_ids;
mod salvage;
mod saved_cursor;
mod schema;
mod shared;
mod stall;
mod status;
mod store;
mod suspected_damage;
mod watermark;
mod writer;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::timeout;
use uuid::Uuid;

pub use append::{AppendError, Appended};
pub use config::Config;
pub use cursor::Cursor;
pub use dead_letter::DeadLetter;
pub use inspect::{
    CursorOverview, DeadLetterPages, DeadLetterQuery, EventQuery, EventSearch, FoundEvent,
    InspectError, Inspector, KeptDeadLetter, SearchOrder, SearchPiece, SpoolOverview,
};
pub use offline::Offline;
pub use probe::{SpaceLimit, SpoolFolder, SpoolSpace, SyncLatency};
pub use reader::{ReadError, Reader, Row};
pub use salvage::{Error as SalvageError, Quarantined, SalvageReport};
pub use status::Status;
pub use store::OpenError;

use crate::event::{Event, Seq, UnixMillis};
use queue::{Append, Queue, Refused, WriterCommand};
use shared::Shared;

/// How long closing the spool waits for the disk.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

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

/// A spool that was just opened, and its orphaned cursors.
#[derive(Debug)]
pub struct Opened {
    /// The spool.
    pub spool: Spool,
    /// Sinks that are not configured but whose cursors still pin events, and how many events each pins.
    pub orphans: Vec<(String, u64)>,
}

impl Spool {
    /// Opens the spool, creating it if there is none, and starts its writer. A new sink starts at the oldest event
    /// kept. Blocks.
    ///
    /// # Errors
    /// Fails if another process has the spool open, if the file is not a spool or is of a newer version, or if it
    /// cannot be read or written.
    pub fn open(config: &Config, sinks: &[&str]) -> Result<Opened, OpenError> {
        writer::open(config, sinks)
    }

    /// Appends an event unless its id is among the recent ones. Waits until the commit that contains it is on disk.
    ///
    /// # Errors
    /// Returns why the event was not stored. Dropping the future does not cancel the append.
    pub async fn append(&self, event: Event) -> Result<Appended, AppendError> {
        self.append_from(event, None).await
    }

    /// Like [`Self::append`]; `permit` is held until the commit is done, even if the future is dropped.
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

    /// Stores events that neither the broker's topic nor its dead-letter topic accepted, for an operator to inspect.
    /// Waits until all of them, or none, are on disk.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn store_dead_letters(
        &self,
        dead_letters: Vec<DeadLetter>,
    ) -> Result<(), AppendError> {
        let (reply, outcome) = oneshot::channel();
        self.put(WriterCommand::StoreDeadLetters {
            dead_letters,
            reply,
        })?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Deletes dead letters, named by sink and number. Returns how many there were, when that is on disk.
    ///
    /// # Errors
    /// As [`Self::append`]; then none was deleted.
    pub async fn remove_dead_letters(
        &self,
        dead_letters: Vec<(String, Seq)>,
    ) -> Result<u64, AppendError> {
        let (reply, outcome) = oneshot::channel();
        self.put(WriterCommand::RemoveDeadLetters {
            dead_letters,
            reply,
        })?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Deletes the cursor of a sink that is not configured, so that it no longer pins events; `Ok(false)` if there is no
    /// such cursor.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn forget(&self, sink: String) -> Result<bool, AppendError> {
        let (reply, outcome) = oneshot::channel();
        self.put(WriterCommand::Forget { sink, reply })?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }

    /// The events of those dead letters of a sink that are still stored, at most about a mebibyte of them: the numbers
    /// that were looked up, each with its event if it is there. Blocks.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn dead_letter_rows(&self, sink: &str, seqs: &[Seq]) -> Result<Vec<Row>, ReadError> {
        reader::dead_letters(&self.path, sink, seqs)
    }

    /// Returns a reader of the events after `position`, including future ones.
    #[must_use]
    pub fn reader(&self, position: Seq) -> Reader {
        Reader::new(&self.path, position, Arc::clone(&self.shared))
    }

    /// A random id that was chosen when the spool was created. It distinguishes this spool from any other, but not from
    /// its copies.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.shared.spool_id
    }

    /// The path of the database file, without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The event with this number; `None` if there is none or it is damaged. Blocks.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn event(&self, seq: Seq) -> Result<Option<Event>, ReadError> {
        reader::event(&self.path, seq)
    }

    /// When the oldest event after `position` was appended. Blocks.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn appended_after(&self, position: Seq) -> Result<Option<UnixMillis>, ReadError> {
        reader::appended_after(&self.path, position)
    }

    /// A configured sink's cursor.
    #[must_use]
    pub fn cursor(&self, sink: &str) -> Option<Cursor> {
        self.shared.cursors.get(sink).cloned()
    }

    /// The current state: what the spool holds, and whether it accepts events.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = self.shared.status.borrow().clone();
        if let (None, Some(stuck)) = (&status.refusing, self.shared.stall.stuck()) {
            let reason = format!("the disk has stalled for {} s", stuck.as_secs());
            status.refusing = Some(AppendError::Io(reason));
        }
        status
    }

    /// The time until the spool is full at the rate of the last minutes; zero if it is full, `None` if it is not
    /// filling. Only known while [`Self::watch`] runs.
    #[must_use]
    pub fn time_until_full(&self) -> Option<Duration> {
        match self.shared.status.borrow().refusing {
            Some(AppendError::Full(_)) => Some(Duration::ZERO),
            _ => self.shared.fill.time_until_full(),
        }
    }

    /// How much of the space for events is taken, in percent: of `spool.max_bytes`, or if that is smaller, of the most
    /// that the disk has had available since the start.
    #[must_use]
    pub fn percent_full(&self) -> u64 {
        self.shared.fill.percent(&self.shared.status.borrow())
    }

    /// Logs when the disk hangs or the spool fills, and when that has ended. The writer cannot log this, because it may
    /// be blocked. Never returns.
    pub async fn watch(&self) -> Infallible {
        tokio::select! {
            never = self.shared.stall.watch() => never,
            never = self.shared.fill.watch(&self.shared.status) => never,
        }
    }

    /// How many events could not be read back since this process started.
    #[must_use]
    pub fn unreadable(&self) -> u64 {
        self.shared.unreadable().len() as u64
    }

    /// How many stored events are lost because of damage that this start or an earlier one has found.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let lost = self.shared.gaps.iter().filter(|gap| gap.lost);
        lost.map(|gap| gap.first.count_to(gap.last)).sum()
    }

    /// How many of the [`lost`](Self::lost) events this start has found.
    #[must_use]
    pub fn lost_at_start(&self) -> u64 {
        let lost = self.shared.report.lost.iter();
        lost.map(|(first, last)| first.count_to(*last)).sum()
    }

    /// `spool.max_bytes`.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.shared.config.max_bytes.0
    }

    /// Free bytes of the disk, including `spool.reserve`; `None` if they cannot be read. Blocks.
    #[must_use]
    pub fn free_disk_bytes(&self) -> Option<u64> {
        quota::free_disk(&self.shared.config)
    }

    /// How long commits of events take, in seconds, including their sync.
    #[must_use]
    pub fn commit_seconds(&self) -> &Histogram {
        &self.shared.commit_seconds
    }

    /// How many dead letters the spool keeps because no broker accepted them.
    #[must_use]
    pub fn dead_letters(&self) -> u64 {
        self.shared.status.borrow().dead_letters
    }

    /// The damage that this start has found.
    #[must_use]
    pub fn report(&self) -> &SalvageReport {
        &self.shared.report
    }

    /// Quarantined files beside the spool that nobody has removed yet.
    #[must_use]
    pub fn quarantined(&self) -> Vec<PathBuf> {
        self.shared.quarantined().clone()
    }

    /// Waits until the spool fails permanently.
    pub async fn failed(&self) -> AppendError {
        self.shared.failed.cancelled().await;
        let refusing = self.shared.status.borrow().refusing.clone();
        refusing.unwrap_or_else(closed)
    }

    /// Commits what is queued, saves the cursors and closes the file. Returns within a bounded time, even if the
    /// disk hangs.
    pub async fn close(self) {
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // If the queue is closed, the writer is about to end anyway.
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
    AppendError::Failed("it was closed".to_owned())
}

#[cfg(test)]
mod tests;
