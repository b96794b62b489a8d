//! Sends events again: a replay of events that the spool still holds, or a retry of dead letters.
//!
//! A resend begins when all events in flight are confirmed, and new events follow it. It does not move the sink's cursor,
//! and pins nothing: events that are purged before it reaches them are skipped. It survives a lost session, but not a
//! restart of the relay, and it ends when nobody waits for it any more.

mod active;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(super) use active::ActiveResend;

use crate::event::Seq;

/// What to send again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResendSource {
    /// Every event that is kept, from this number to the newest that the sink has confirmed.
    Replay {
        /// The first number.
        from: Seq,
    },
    /// The dead letters of these events that are stored for the sink. Each is removed once the broker has confirmed it.
    Retry {
        /// Their numbers.
        seqs: BTreeSet<Seq>,
    },
}

/// How far a resend is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResendProgress {
    /// Whether it has begun: the events that were in flight before it are confirmed.
    pub has_begun: bool,
    /// How many numbers it covers.
    pub total: u64,
    /// Events that the broker has confirmed.
    pub confirmed: u64,
    /// Numbers whose event was not sent again, because it is no longer kept, cannot be read, or is not confirmed yet
    /// and will be sent anyway.
    pub skipped: u64,
    /// Events that the broker refused, even as dead letters; they are stored as such.
    pub refused: u64,
    /// Every event up to here was sent again or skipped.
    pub position: Seq,
    /// How it ended.
    pub end: Option<ResendEnd>,
}

/// How a resend ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResendEnd {
    /// Every event was sent again or skipped.
    Finished,
    /// It stopped earlier, for this reason.
    Stopped(&'static str),
}

/// A resend that was requested. Dropping it ends the resend.
#[derive(Debug)]
pub struct Resend {
    /// How far it is. The channel closes when it has ended, or when the forwarder has.
    pub progress: watch::Receiver<ResendProgress>,
    /// Cancels the resend when it is dropped.
    #[expect(dead_code, reason = "it only has to be dropped")]
    cancel: DropGuard,
}

/// Requests resends of a forwarder, one at a time; clones share it.
#[derive(Debug, Clone, Default)]
pub struct ResendQueue(Arc<Requests>);

#[derive(Debug, Default)]
struct Requests {
    slot: Mutex<Slot>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Slot {
    /// Not taken by the forwarder yet.
    pending: Option<ResendRequest>,
    last: Option<(watch::Receiver<ResendProgress>, CancellationToken)>,
    is_closed: bool,
}

/// Why a resend cannot be requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResendError {
    /// Another one has not ended.
    #[error(
        "the sink is already sending events again; wait until that has ended, or stop the command that waits for it"
    )]
    Busy,
    /// The forwarder has ended.
    #[error("the sink has stopped publishing; fix the cause and restart the relay")]
    Stopped,
}

/// What the forwarder has to do.
#[derive(Debug)]
pub(super) struct ResendRequest {
    source: ResendSource,
    progress: watch::Sender<ResendProgress>,
    cancelled: CancellationToken,
}

/// The forwarder's end of a queue. Dropping it refuses further requests.
#[derive(Debug)]
pub(super) struct ResendRequests(Arc<Requests>);

impl ResendQueue {
    /// Requests a resend.
    ///
    /// # Errors
    /// Fails if another one has not ended, or if the forwarder has.
    pub fn request(&self, source: ResendSource) -> Result<Resend, ResendError> {
        let mut slot = self.0.slot();
        if slot.is_closed {
            return Err(ResendError::Stopped);
        }
        if slot.running().is_some() {
            return Err(ResendError::Busy);
        }
        let (sender, progress) = watch::channel(ResendProgress::default());
        let cancelled = CancellationToken::new();
        slot.last = Some((progress.clone(), cancelled.clone()));
        slot.pending = Some(ResendRequest {
            source,
            progress: sender,
            cancelled: cancelled.clone(),
        });
        drop(slot);
        self.0.changed.notify_one();
        Ok(Resend {
            progress,
            cancel: cancelled.drop_guard(),
        })
    }

    /// How far the resend is that has not ended; `None` if there is none.
    #[must_use]
    pub fn running(&self) -> Option<ResendProgress> {
        self.0.slot().running()
    }

    /// The forwarder's end.
    pub(super) fn requests(&self) -> ResendRequests {
        ResendRequests(Arc::clone(&self.0))
    }
}

impl Requests {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn running(&self) -> Option<ResendProgress> {
        let (progress, cancelled) = self.last.as_ref()?;
        let is_alive = progress.has_changed().is_ok() && !cancelled.is_cancelled();
        is_alive.then(|| progress.borrow().clone())
    }
}

impl ResendRequests {
    /// Waits for the next request. Cancel safe.
    pub(super) async fn next(&self) -> ResendRequest {
        loop {
            let request = self.0.slot().pending.take();
            match request {
                Some(request) if !request.cancelled.is_cancelled() => return request,
                Some(_) => {}
                None => self.0.changed.notified().await,
            }
        }
    }
}

impl Drop for ResendRequests {
    fn drop(&mut self) {
        let mut slot = self.0.slot();
        slot.is_closed = true;
        slot.pending = None;
    }
}
