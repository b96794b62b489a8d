//! A resend that has begun: which rows it has yet to send, and how far it is.

use std::collections::BTreeSet;
use std::time::Instant;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{ResendEnd, ResendProgress, ResendRequest, ResendSource};
use crate::event::Seq;
use crate::spool::{ReadError, Row, Spool};

/// A resend that has begun.
#[derive(Debug)]
pub(in crate::forwarder) struct ActiveResend {
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
    /// Rows of the table `dead_letters`. `left` are not handled yet; those up to `read` were read in this session.
    Retry {
        left: BTreeSet<Seq>,
        read: Seq,
        spool: Spool,
    },
}

impl ActiveResend {
    /// Begins a resend. `confirmed` is the sink's cursor: events after it will be sent anyway.
    pub(in crate::forwarder) fn begin(
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

    pub(in crate::forwarder) const fn is_replay(&self) -> bool {
        matches!(self.rows, Rows::Replay { .. })
    }

    /// The position to read the spool from; `None` for a retry, which reads other rows.
    pub(in crate::forwarder) fn position(&self) -> Option<Seq> {
        self.is_replay().then_some(self.progress.position)
    }

    /// Another session begins: what is not handled yet is read again.
    pub(in crate::forwarder) fn restart(&mut self) {
        let position = self.progress.position;
        match &mut self.rows {
            Rows::Replay { next, .. } => *next = position.next(),
            Rows::Retry { read, .. } => *read = Seq(0),
        }
    }

    /// Cancelled when nobody waits for the resend any more.
    pub(in crate::forwarder) fn cancellation(&self) -> CancellationToken {
        self.cancelled.clone()
    }

    /// Reads the next dead letters; waits for ever if there are none left. Cancel safe.
    pub(in crate::forwarder) async fn next_dead_letters(
        &mut self,
        limit: usize,
    ) -> Result<Vec<Row>, ReadError> {
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

    /// Records that a row was read. Returns whether it belongs to the resend; if not, its event is a new one.
    pub(in crate::forwarder) fn take(&mut self, row: &Row) -> bool {
        match &mut self.rows {
            Rows::Replay { next, until } => {
                let last = row.seq.min(*until);
                let numbers = next.count_to(last);
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
    pub(in crate::forwarder) fn dead_letters(&self, seqs: &[Seq]) -> Vec<(String, Seq)> {
        let Rows::Retry { left, .. } = &self.rows else {
            return Vec::new();
        };
        let dead_letters = seqs.iter().filter(|seq| left.contains(seq));
        dead_letters
            .map(|seq| (self.sink.to_owned(), *seq))
            .collect()
    }

    /// The broker has confirmed this event, which was sent again.
    pub(in crate::forwarder) fn confirmed(&mut self, seq: Seq) {
        self.progress.confirmed += 1;
        self.handled(seq);
    }

    /// The broker has refused this event even as a dead letter.
    pub(in crate::forwarder) fn refused(&mut self, seq: Seq) {
        self.progress.refused += 1;
        self.handled(seq);
    }

    fn handled(&mut self, seq: Seq) {
        if let Rows::Retry { left, .. } = &mut self.rows {
            left.remove(&seq);
        }
    }

    /// Every event up to here is confirmed. Publishes the progress, and returns whether the resend is finished.
    pub(in crate::forwarder) fn reached(&mut self, position: Seq) -> bool {
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
    pub(in crate::forwarder) fn finish(self) {
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
    pub(in crate::forwarder) fn stop(self, reason: &'static str) {
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
