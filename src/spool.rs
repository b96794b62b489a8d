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

mod append;
mod config;
mod cursor;
mod dead_letter;
mod event_cache;
mod files;
mod gaps;
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

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::timeout;
use uuid::Uuid;

pub use append::{AppendError, Appended};
pub use config::Config;
pub use cursor::Cursor;
pub use dead_letter::DeadLetter;
pub use reader::{ReadError, Reader, Row};
pub use salvage::{Error as SalvageError, Quarantined, SalvageReport};
pub use status::Status;
pub use store::OpenError;

use crate::event::{Event, Seq, UnixMillis};
use queue::{Append, Queue, Refused, WriterCommand};
use shared::Shared;

/// How long closing waits for the disk.
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
