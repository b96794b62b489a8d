//! Sends events again: a replay of events that the spool still holds, or a retry of dead letters.
//!
//! A resend begins when all events in flight are confirmed, and new events follow it. It does not move the sink's cursor,
//! and pins nothing: events that are purged before it reaches them are skipped. It survives a lost session, but not a
//! restart of the relay, and it ends when nobody waits for it any more.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use crate::event::Seq;
use crate::spool::{ReadError, Row, Spool};

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
    /// Numbers without an event that could be sent again: it is no longer kept, cannot be read, or is not confirmed yet
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

/// A resend that has begun.
#[derive(Debug)]
pub(super) struct ActiveResend {
    sink: &'static str,
    rows: Rows,
    progress: ResendProgress,
    reports: watch::Sender<ResendProgress>,
    cancelled: CancellationToken,
    began: Instant,
}

/// The rows to send again.
#[derive(Debug)]
enum Rows {
    /// Those of the forwarder's reader, up to `until`. Numbers before `next` have been read.
    Replay { next: Seq, until: Seq },
    /// Those of the table of dead letters that are not handled yet. Those up to `read` have been read in this session.
    Retry {
        left: BTreeSet<Seq>,
        read: Seq,
        spool: Spool,
    },
}

impl ActiveResend {
    /// Begins a resend. `confirmed` is the sink's cursor: events after it will be sent anyway.
    pub(super) fn begin(
        request: ResendRequest,
        sink: &'static str,
        confirmed: Seq,
        spool: &Spool,
    ) -> Self {
        let mut progress = ResendProgress {
            has_begun: true,
            ..ResendProgress::default()
        };
        let rows = match request.source {
            ResendSource::Replay { from } => {
                let from = from.max(Seq(1));
                progress.position = Seq(from.0 - 1);
                progress.total = confirmed.next().0.saturating_sub(from.0);
                info!(
                    code = "replay_started",
                    sink,
                    from_seq = from.0,
                    until_seq = confirmed.0,
                    "replay has started: the sink publishes these events again, then new ones"
                );
                let (next, until) = (from, confirmed);
                Rows::Replay { next, until }
            }
            ResendSource::Retry { mut seqs } => {
                progress.total = seqs.len() as u64;
                // The cursor must not pass an event that was not sent.
                seqs.retain(|seq| *seq <= confirmed);
                progress.skipped = progress.total - seqs.len() as u64;
                info!(
                    code = "retry_started",
                    sink,
                    events = seqs.len(),
                    "sink publishes dead letters of the spool again, then new events"
                );
                Rows::Retry {
                    left: seqs,
                    read: Seq(0),
                    spool: spool.clone(),
                }
            }
        };
        Self {
            sink,
            rows,
            progress,
            reports: request.progress,
            cancelled: request.cancelled,
            began: Instant::now(),
        }
    }

    pub(super) const fn is_replay(&self) -> bool {
        matches!(self.rows, Rows::Replay { .. })
    }

    /// The position to read the spool from; `None` for a retry, which reads other rows.
    pub(super) fn position(&self) -> Option<Seq> {
        self.is_replay().then_some(self.progress.position)
    }

    /// Another session begins: what is not handled yet is read again.
    pub(super) fn restart(&mut self) {
        let position = self.progress.position;
        match &mut self.rows {
            Rows::Replay { next, .. } => *next = position.next(),
            Rows::Retry { read, .. } => *read = Seq(0),
        }
    }

    /// Cancelled when nobody waits for the resend any more.
    pub(super) fn cancellation(&self) -> CancellationToken {
        self.cancelled.clone()
    }

    /// Reads the next dead letters; waits for ever if there are none left. Cancel safe.
    pub(super) async fn next_dead_letters(&mut self, limit: usize) -> Result<Vec<Row>, ReadError> {
        let Rows::Retry { left, read, spool } = &mut self.rows else {
            return std::future::pending().await;
        };
        let seqs: Vec<Seq> = left.range(read.next()..).take(limit).copied().collect();
        if seqs.is_empty() {
            return std::future::pending().await;
        }
        let (spool, sink) = (spool.clone(), self.sink);
        let reading = spawn_blocking(move || spool.dead_letter_rows(sink, &seqs));
        let Ok(rows) = reading.await else {
            // The runtime is shutting down.
            return std::future::pending().await;
        };
        let rows = rows?;
        *read = rows.last().map_or(*read, |row| row.seq);
        Ok(rows)
    }

    /// Notes a row that was read. Returns whether its event is sent again, not for the first time.
    pub(super) fn take(&mut self, row: &Row) -> bool {
        match &mut self.rows {
            Rows::Replay { next, until } => {
                let last = row.seq.min(*until);
                let numbers = (last.0 + 1).saturating_sub(next.0);
                let is_resent = row.seq <= *until;
                let events = u64::from(is_resent && row.event.is_some());
                self.progress.skipped += numbers.saturating_sub(events);
                *next = (*next).max(last.next());
                is_resent
            }
            Rows::Retry { left, .. } => {
                if row.event.is_none() && left.remove(&row.seq) {
                    self.progress.skipped += 1;
                }
                true
            }
        }
    }

    /// The dead letters among these events, to be removed from the spool once the broker has confirmed them.
    pub(super) fn dead_letters(&self, seqs: &[Seq]) -> Vec<(String, Seq)> {
        let Rows::Retry { left, .. } = &self.rows else {
            return Vec::new();
        };
        let dead_letters = seqs.iter().filter(|seq| left.contains(seq));
        dead_letters
            .map(|seq| (self.sink.to_owned(), *seq))
            .collect()
    }

    /// The broker has confirmed this event, which was sent again.
    pub(super) fn confirmed(&mut self, seq: Seq) {
        self.progress.confirmed += 1;
        self.handled(seq);
    }

    /// The broker has refused this event even as a dead letter.
    pub(super) fn refused(&mut self, seq: Seq) {
        self.progress.refused += 1;
        self.handled(seq);
    }

    fn handled(&mut self, seq: Seq) {
        if let Rows::Retry { left, .. } = &mut self.rows {
            left.remove(&seq);
        }
    }

    /// Every event up to here is confirmed. Publishes the progress, and returns whether the resend is finished.
    pub(super) fn reached(&mut self, position: Seq) -> bool {
        let is_finished = match &self.rows {
            Rows::Replay { until, .. } => {
                self.progress.position = self.progress.position.max(position.min(*until));
                self.progress.position >= *until
            }
            Rows::Retry { left, .. } => {
                self.progress.position = self.progress.position.max(position);
                left.is_empty()
            }
        };
        self.reports.send_replace(self.progress.clone());
        is_finished
    }

    /// Logs and reports that every event was sent again or skipped.
    pub(super) fn finish(self) {
        let Self { sink, progress, .. } = &self;
        let (events, skipped, refused) = (progress.confirmed, progress.skipped, progress.refused);
        let seconds = self.began.elapsed().as_secs();
        if self.is_replay() {
            info!(
                code = "replay_finished",
                sink, events, skipped, refused, seconds, "replay is finished: new events follow"
            );
        } else {
            info!(
                code = "retry_finished",
                sink,
                events,
                skipped,
                refused,
                seconds,
                "sink has published dead letters of the spool again"
            );
        }
        self.end(ResendEnd::Finished);
    }

    /// Logs and reports that the resend stops before its end.
    pub(super) fn stop(self, reason: &'static str) {
        let (sink, seq) = (self.sink, self.progress.position);
        let events = self.progress.confirmed;
        if self.is_replay() {
            let next = seq.next();
            warn!(
                code = "replay_stopped", sink, events, %seq, reason,
                "replay has stopped before its end: events after this number were not sent again; to send them, run \
                 `recall-relay spool replay {sink} --since seq:{next}`"
            );
        } else {
            warn!(
                code = "retry_stopped",
                sink,
                events,
                reason,
                "retry of dead letters has stopped before its end: the others are still stored; retry them with \
                 `recall-relay spool dead-letters retry`"
            );
        }
        self.end(ResendEnd::Stopped(reason));
    }

    fn end(mut self, end: ResendEnd) {
        self.progress.end = Some(end);
        self.reports.send_replace(self.progress);
    }
}
