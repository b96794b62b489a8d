//! Exactly once: each batch of events in one transaction with where it ends.
//!
//! A transaction takes what has come while the one before was committed, so that batches grow with the
//! backlog; a session's first ones are small.
//!
//! Where only the commit has failed, and may succeed when it is tried again, the transaction is aborted and the same batch
//! is sent again, twice at most. After any other failure the session ends, and the next one asks the cluster where it
//! stands: where records have failed, librdkafka may count wrong, and a new producer begins a new epoch.

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
use crate::event::Seq;
use crate::sink::{
    CommittedPosition, DEAD_LETTER_TOPIC, Delivery, Progress, Refusal, SessionError, Window,
};

/// How often a batch is sent again in a session.
const TRIES: u8 = 2;

/// If no record of a batch is acknowledged for this long, the session ends: its topic may be gone, for example, which
/// librdkafka waits for. The next session creates it again.
const SENDING_TIMEOUT: Duration = Duration::from_secs(10);

/// librdkafka's `transaction.timeout.ms`: what is not committed by then has been aborted by the cluster.
const COMMITTING_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of the events of a session's first transaction. Each one that succeeds doubles what the next may take: on a
/// line on which a large one takes too long, the small ones get through again and again.
const FIRST_BATCH: usize = 64 << 10;

/// The offset of a group without members is forgotten some days after it was written last
/// (`offsets.retention.minutes`, 7 days by default).
const REFRESH_EVERY: Duration = Duration::from_hours(12);

/// The transactions of one producer.
pub(super) struct Transactions {
    coordinator: Arc<Coordinator>,
    position: CommittedPosition,
    refresh_due: Instant,
    /// What the next transactions take.
    pending: VecDeque<Seq>,
    /// Bytes after which the next one takes no more events.
    enough: usize,
    batch: Option<Batch>,
}

/// The events of one transaction.
struct Batch {
    seqs: Vec<Seq>,
    stage: Stage,
    /// When something was last heard of it.
    news: Instant,
    /// How often it may be sent again.
    tries: u8,
}

enum Stage {
    /// So many records are not with the cluster yet.
    Sending(usize),
    Committing(JoinHandle<KafkaResult<()>>),
    Aborting(JoinHandle<KafkaResult<()>>),
}

impl Transactions {
    /// Those of a producer whose last one ended at `position`.
    pub(super) fn new(coordinator: Coordinator, position: CommittedPosition) -> Self {
        Self {
            coordinator: Arc::new(coordinator),
            position,
            refresh_due: Instant::now() + REFRESH_EVERY,
            pending: VecDeque::new(),
            enough: FIRST_BATCH,
            batch: None,
        }
    }

    /// Where the last transaction ended.
    pub(super) const fn position(&self) -> CommittedPosition {
        self.position
    }

    /// Queues events of the window for the next transactions, in order. An event of the current batch was refused: it
    /// is sent again at once, as a dead letter.
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

    /// What has happened since; waits until there is something. Cancel safe.
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
                    () = sleep_until(self.refresh_due) => {
                        self.batch = Some(Batch::of(Vec::new()));
                        continue;
                    }
                }
            };
            match &mut batch.stage {
                Stage::Sending(0) => {
                    let position = batch.end(window).unwrap_or(self.position);
                    batch.enter(Stage::Committing(self.coordinator.start_commit(position)));
                }
                Stage::Sending(_) => match batch.heard(SENDING_TIMEOUT, window, producer).await {
                    Ok(Progress::Confirmed(seqs)) => batch.arrived(seqs.len()),
                    Ok(Progress::Refused(refused)) => {
                        // The spool keeps refused dead letters before this is called again.
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
                        let failure = self.coordinator.failure().await;
                        return Err(batch.failed(error, failure, window));
                    }
                },
                Stage::Committing(committing) => {
                    let outcome = tokio::select! {
                        biased;
                        outcome = committing => outcome.map_err(stopping)?,
                        progress = producer.progress(window) => return progress,
                        () = sleep_until(batch.news + COMMITTING_TIMEOUT) => return Err(silence()),
                    };
                    match outcome {
                        Ok(()) => {
                            if let Some(confirmed) = self.committed(window) {
                                return Ok(confirmed);
                            }
                        }
                        Err(error) if batch.tries == 0 || !is_abortable(&error) => {
                            let doing = "could not commit a transaction";
                            return Err(SessionError::unavailable(doing, error));
                        }
                        Err(error) => {
                            debug!(%error, "a batch is aborted and sent again");
                            batch.enter(Stage::Aborting(self.coordinator.start_abort()));
                        }
                    }
                }
                Stage::Aborting(aborting) => {
                    aborting.await.map_err(stopping)?.map_err(|error| {
                        SessionError::unavailable("could not abort a transaction", error)
                    })?;
                    batch.tries -= 1;
                    batch.seqs.retain(|seq| window.delivery(*seq).is_some());
                    batch.enter(Stage::Sending(batch.seqs.len()));
                    producer.publish_anew(window, &batch.seqs);
                }
            }
        }
    }

    /// Gives up what is under way; subscribers need not wait for it.
    pub(super) async fn close(self, producer: &Producer) {
        let aborting = match self.batch.map(|batch| batch.stage) {
            Some(Stage::Sending(_)) => Some(self.coordinator.start_abort()),
            // One that has failed has told so, and cannot be awaited again.
            Some(Stage::Aborting(aborting)) if !aborting.is_finished() => Some(aborting),
            _ => None,
        };
        if let Some(aborting) = aborting {
            let _ = timeout(CALL_TIMEOUT, aborting).await;
        }
        producer.over().store(true, Ordering::Release);
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
            let takes = bytes < self.enough && is_dead_letter(next) == kind;
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

    /// The batch is with the cluster for good.
    fn committed(&mut self, window: &Window) -> Option<Progress> {
        let batch = self.batch.take()?;
        self.position = batch.end(window).unwrap_or(self.position);
        self.refresh_due = Instant::now() + REFRESH_EVERY;
        self.enough = self.enough.saturating_mul(2);
        debug!(events = batch.seqs.len(), "committed a transaction");
        (!batch.seqs.is_empty()).then_some(Progress::Confirmed(batch.seqs))
    }
}

impl Batch {
    fn of(seqs: Vec<Seq>) -> Self {
        Self {
            stage: Stage::Sending(seqs.len()),
            seqs,
            news: Instant::now(),
            tries: TRIES,
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.news = Instant::now();
    }

    /// What the producer has heard since, within this time from the last news.
    async fn heard(
        &mut self,
        within: Duration,
        window: &Window,
        producer: &mut Producer,
    ) -> Result<Progress, SessionError> {
        let progress = timeout_at(self.news + within, producer.progress(window)).await;
        let progress = progress.map_err(|_| silence())??;
        self.news = Instant::now();
        Ok(progress)
    }

    /// Where the relay stands once it is committed; none where it is empty.
    fn end(&self, window: &Window) -> Option<CommittedPosition> {
        // One that the spool keeps as a dead letter is not in the window any more.
        let mut last_first = self.seqs.iter().rev();
        let last = last_first.find_map(|seq| window.delivery(*seq))?;
        Some(CommittedPosition {
            seq: last.seq,
            event: Some(last.event.fingerprint()),
        })
    }

    /// So many records are with the cluster, or will never be.
    fn arrived(&mut self, records: usize) {
        if let Stage::Sending(missing) = &mut self.stage {
            *missing = missing.saturating_sub(records);
        }
    }

    fn has(&self, seq: Seq) -> bool {
        self.seqs.binary_search(&seq).is_ok()
    }

    /// What the failure of its records says of it. librdkafka tells of the records only that they were let go.
    fn failed(
        &self,
        error: SessionError,
        failure: Option<KafkaError>,
        window: &Window,
    ) -> SessionError {
        let (SessionError::Unavailable(..), Some(KafkaError::Transaction(failure))) =
            (&error, failure)
        else {
            return error;
        };
        if failure.code() == RDKafkaErrorCode::State {
            // It has nothing against the transaction but that it is under way.
            return error;
        }
        let detail = failure.string();
        let mut deliveries = self.seqs.iter().filter_map(|seq| window.delivery(*seq));
        let only_letters = deliveries.all(Delivery::is_dead_letter);
        if only_letters && is_missing_right(failure.code()) {
            let reason = DEAD_LETTER_TOPIC;
            return SessionError::Refused(Refusal { reason, detail });
        }
        SessionError::Unavailable(detail, None)
    }
}

fn silence() -> SessionError {
    SessionError::Unavailable("the cluster does not take a transaction".to_owned(), None)
}
