//! Exactly once: each batch of events is one transaction, which also contains the position where the batch ends.
//!
//! A transaction contains the events that arrived while the previous one was committed, so batches grow with the
//! backlog; a session's first ones are small.
//!
//! If only the commit failed and a retry may succeed, the transaction is aborted and the same batch is sent again, at
//! most twice. After any other failure the session ends, and the next one reads the committed position from the
//! cluster: after failed records, librdkafka may reuse their sequence numbers, and only a new producer begins a new
//! epoch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::debug;

use super::coordinator::{CALL_TIMEOUT, Coordinator, is_abortable};
use super::errors::{is_missing_right, stopping};
use super::producer::Producer;
use super::rights::TopicRight;
use crate::event::Seq;
use crate::sink::{
    CommittedPosition, DEAD_LETTER_TOPIC, Delivery, Progress, Refusal, SessionError, Window,
};

/// How often a batch is sent again if its commit fails.
const MAX_RETRIES: u8 = 2;

/// If no record of a batch is acknowledged for this long, the session ends. For example, the topic may be deleted, and
/// librdkafka waits for it. The next session creates it again.
const SENDING_TIMEOUT: Duration = Duration::from_secs(10);

/// If a commit takes longer, the session ends. The next session's producer makes the cluster complete or abort the
/// transaction, and reads from the cluster which of the two happened. librdkafka's own timeout does not end a commit
/// that waits for a group coordinator that the cluster has fenced (librdkafka issues 5456 and 5511).
const COMMITTING_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum bytes of the events in a session's first transaction. Each successful transaction doubles the limit of the
/// next. If the connection is too slow for a large transaction, each session still commits the small ones.
const FIRST_BATCH: usize = 64 << 10;

/// The cluster deletes the offset of a group without members some days after it was last written
/// (`offsets.retention.minutes`, 7 days by default).
const REFRESH_EVERY: Duration = Duration::from_hours(12);

/// The transactions of one producer.
pub(super) struct Transactions {
    coordinator: Arc<Coordinator>,
    position: CommittedPosition,
    refresh_due: Instant,
    /// The events of the next transactions.
    pending: VecDeque<Seq>,
    /// Bytes after which the next transaction accepts no more events.
    byte_limit: usize,
    batch: Option<Batch>,
}

/// The events of one transaction.
struct Batch {
    seqs: Vec<Seq>,
    stage: Stage,
    /// When the batch last made progress.
    last_progress: Instant,
    /// How often the batch may still be sent again.
    retries_left: u8,
}

enum Stage {
    /// This many records have no outcome yet.
    Sending(usize),
    Committing(JoinHandle<KafkaResult<()>>),
    Aborting(JoinHandle<KafkaResult<()>>),
}

impl Transactions {
    /// The transactions of a producer whose last transaction ended at `position`.
    pub(super) fn new(coordinator: Coordinator, position: CommittedPosition) -> Self {
        Self {
            coordinator: Arc::new(coordinator),
            position,
            refresh_due: Instant::now() + REFRESH_EVERY,
            pending: VecDeque::new(),
            byte_limit: FIRST_BATCH,
            batch: None,
        }
    }

    /// The position at which the last transaction ended.
    pub(super) const fn position(&self) -> CommittedPosition {
        self.position
    }

    /// Queues events of the window for the next transactions, in order. If an event of the current batch was refused,
    /// it is sent again at once, as a dead letter.
    pub(super) fn publish(&mut self, window: &Window, seqs: &[Seq], producer: &mut Producer) {
        for seq in seqs {
            let in_batch = self.batch.as_ref().is_some_and(|batch| batch.has(*seq));
            if in_batch {
                producer.publish(window, &[*seq]);
            } else {
                self.pending.push_back(*seq);
            }
        }
        self.send_next(window, producer);
    }

    /// Waits for the next report. Cancel safe.
    pub(super) async fn progress(
        &mut self,
        window: &Window,
        producer: &mut Producer,
    ) -> Result<Progress, SessionError> {
        loop {
            self.send_next(window, producer);
            let Some(batch) = &mut self.batch else {
                tokio::select! {
                    progress = producer.progress(window) => return progress,
                    // Nothing was committed for long: commit the position again, before the cluster deletes it.
                    () = sleep_until(self.refresh_due) => {
                        self.batch = Some(Batch::of(Vec::new()));
                        continue;
                    }
                }
            };
            match &mut batch.stage {
                // All records have arrived: commit them with the position.
                Stage::Sending(0) => {
                    let position = batch.end(window).unwrap_or(self.position);
                    batch.enter(Stage::Committing(self.coordinator.start_commit(position)));
                }
                Stage::Sending(_) => {
                    match batch.next_progress(SENDING_TIMEOUT, window, producer).await {
                        Ok(Progress::Confirmed(seqs)) => batch.arrived(seqs.len()),
                        Ok(Progress::Refused(refused)) => {
                            // The session is polled again only after the spool has stored the refused dead letters.
                            let dead_letters = refused.iter().filter(|(seq, _)| {
                                let delivery = window.delivery(*seq);
                                delivery.is_some_and(Delivery::is_dead_letter)
                            });
                            batch.arrived(dead_letters.count());
                            return Ok(Progress::Refused(refused));
                        }
                        Ok(other) => return Ok(other),
                        Err(error) if producer.reports().is_over() => return Err(error),
                        Err(error) => {
                            // The producer's error does not say why the records failed; the transaction's error does.
                            let failure = self.coordinator.failure().await;
                            return Err(batch.failed(error, failure, window, producer));
                        }
                    }
                }
                Stage::Committing(committing) => {
                    let outcome = tokio::select! {
                        biased;
                        outcome = committing => outcome.map_err(stopping)?,
                        progress = producer.progress(window) => return progress,
                        () = sleep_until(batch.last_progress + COMMITTING_TIMEOUT) => return Err(timed_out(producer)),
                    };
                    match outcome {
                        Ok(()) => {
                            if let Some(confirmed) = self.committed(window) {
                                return Ok(confirmed);
                            }
                        }
                        Err(error) if batch.retries_left == 0 || !is_abortable(&error) => {
                            let action = "could not commit a transaction".to_owned();
                            let (right, topic) = (TopicRight::Read, &producer.topic);
                            return Err(producer
                                .reports()
                                .request_failed(action, right, topic, error));
                        }
                        Err(error) => {
                            debug!(%error, "aborting a transaction, to send its batch again");
                            batch.enter(Stage::Aborting(self.coordinator.start_abort()));
                        }
                    }
                }
                Stage::Aborting(aborting) => {
                    aborting.await.map_err(stopping)?.map_err(|error| {
                        SessionError::unavailable("could not abort a transaction", error)
                    })?;
                    batch.retries_left -= 1;
                    // An event stored as a dead letter is no longer in the window.
                    batch.seqs.retain(|seq| window.delivery(*seq).is_some());
                    batch.enter(Stage::Sending(batch.seqs.len()));
                    producer.publish_anew(window, &batch.seqs);
                }
            }
        }
    }

    /// Aborts a transaction in progress, so that subscribers need not wait for it.
    pub(super) async fn close(self, producer: &Producer) {
        let aborting = match self.batch.map(|batch| batch.stage) {
            Some(Stage::Sending(_)) => Some(self.coordinator.start_abort()),
            // A failed abort has already returned its error, and cannot be awaited again.
            Some(Stage::Aborting(aborting)) if !aborting.is_finished() => Some(aborting),
            _ => None,
        };
        if let Some(aborting) = aborting {
            let _ = timeout(CALL_TIMEOUT, aborting).await;
        }
        producer.stopped().store(true, Ordering::Release);
    }

    /// Starts the next transaction. Pending dead letters and pending events are not mixed, so that a dead-letter topic
    /// that refuses writes does not block the events. An event refused within a batch stays in its transaction.
    fn send_next(&mut self, window: &Window, producer: &mut Producer) {
        if self.batch.is_some() {
            return;
        }
        let is_dead_letter =
            |seq: &Seq| window.delivery(*seq).is_some_and(Delivery::is_dead_letter);
        let Some(first) = self.pending.front() else {
            return;
        };
        let kind = is_dead_letter(first);
        let mut bytes = 0;
        let takes = |next: &&Seq| {
            let takes = bytes < self.byte_limit && is_dead_letter(next) == kind;
            bytes += window
                .delivery(**next)
                .map_or(0, |next| next.event.body.len());
            takes
        };
        let count = self.pending.iter().take_while(takes).count();
        let batch = Batch::of(self.pending.drain(..count).collect());
        producer.publish(window, &batch.seqs);
        self.batch = Some(batch);
    }

    /// Completes a batch after its commit.
    fn committed(&mut self, window: &Window) -> Option<Progress> {
        let batch = self.batch.take()?;
        self.position = batch.end(window).unwrap_or(self.position);
        self.refresh_due = Instant::now() + REFRESH_EVERY;
        self.byte_limit = self.byte_limit.saturating_mul(2);
        debug!(events = batch.seqs.len(), "committed a transaction");
        (!batch.seqs.is_empty()).then_some(Progress::Confirmed(batch.seqs))
    }
}

impl Batch {
    fn of(seqs: Vec<Seq>) -> Self {
        Self {
            stage: Stage::Sending(seqs.len()),
            seqs,
            last_progress: Instant::now(),
            retries_left: MAX_RETRIES,
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.last_progress = Instant::now();
    }

    /// Waits for the producer's next progress. Fails if there is none `within` this time after the last.
    async fn next_progress(
        &mut self,
        within: Duration,
        window: &Window,
        producer: &mut Producer,
    ) -> Result<Progress, SessionError> {
        let progress = timeout_at(self.last_progress + within, producer.progress(window)).await;
        let progress = progress.map_err(|_| timed_out(producer))??;
        // That the brokers are unreachable for yet another reason is no progress.
        if !matches!(progress, Progress::Stalled(_)) {
            self.last_progress = Instant::now();
        }
        Ok(progress)
    }

    /// The position after the batch is committed; none if the batch is empty, or has only events that are sent again:
    /// the committed position never moves back.
    fn end(&self, window: &Window) -> Option<CommittedPosition> {
        // An event stored as a dead letter is no longer in the window.
        let mut last_first = self.seqs.iter().rev();
        let last = last_first.find_map(|seq| {
            let delivery = window.delivery(*seq);
            delivery.filter(|delivery| !delivery.is_resent)
        })?;
        Some(CommittedPosition {
            seq: last.seq,
            event: Some(last.event.fingerprint()),
        })
    }

    /// Counts records that have arrived, or never will.
    fn arrived(&mut self, records: usize) {
        if let Stage::Sending(missing) = &mut self.stage {
            *missing = missing.saturating_sub(records);
        }
    }

    fn has(&self, seq: Seq) -> bool {
        self.seqs.binary_search(&seq).is_ok()
    }

    /// The session's error after records of the batch failed. For the records, librdkafka reports only that they were
    /// purged; the transaction's error has the cause.
    fn failed(
        &self,
        error: SessionError,
        failure: Option<KafkaError>,
        window: &Window,
        producer: &Producer,
    ) -> SessionError {
        let (SessionError::Unavailable(..), Some(KafkaError::Transaction(failure))) =
            (&error, failure)
        else {
            return error;
        };
        if failure.code() == RDKafkaErrorCode::State {
            // The only error is that a transaction is in progress, so it has not failed.
            return error;
        }
        let mut deliveries = self.seqs.iter().filter_map(|seq| window.delivery(*seq));
        let only_dead_letters = deliveries.all(Delivery::is_dead_letter);
        if only_dead_letters && is_missing_right(failure.code()) {
            let (reason, detail) = (DEAD_LETTER_TOPIC, failure.string());
            return SessionError::Refused(Refusal { reason, detail });
        }
        let action = "could not publish in a transaction".to_owned();
        let error = KafkaError::Transaction(failure);
        let (reports, topic) = (producer.reports(), &producer.topic);
        reports.request_failed(action, TopicRight::Write, topic, error)
    }
}

fn timed_out(producer: &Producer) -> SessionError {
    let mut reason = "cluster has not completed a transaction in time".to_owned();
    if let Some(error) = producer.reports().last_error() {
        reason = format!("{reason}: {error}");
    }
    SessionError::Unavailable(reason, None)
}
