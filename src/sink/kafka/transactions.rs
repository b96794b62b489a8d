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
use super::outbox::Outbox;
use crate::event::Seq;
use crate::sink::{DEAD_LETTER_TOPIC, Delivery, Progress, Refusal, SessionError, Standing};

/// How often a batch is sent again in a session.
const TRIES: u8 = 2;

/// A batch of which nothing has come to the cluster for so long will not: its topic is gone, for example, which
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
    standing: Standing,
    refresh_due: Instant,
    /// What the next transactions take.
    pending: VecDeque<Delivery>,
    /// Bytes after which the next one takes no more events.
    enough: usize,
    batch: Option<Batch>,
}

/// The events of one transaction.
struct Batch {
    deliveries: Vec<Delivery>,
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
    /// Those of a producer whose last one ended at `standing`.
    pub(super) fn new(coordinator: Coordinator, standing: Standing) -> Self {
        Self {
            coordinator: Arc::new(coordinator),
            standing,
            refresh_due: Instant::now() + REFRESH_EVERY,
            pending: VecDeque::new(),
            enough: FIRST_BATCH,
            batch: None,
        }
    }

    /// Where the last transaction ended.
    pub(super) const fn standing(&self) -> Standing {
        self.standing
    }

    /// Takes events, in order, or one of the batch under way again, for the dead letters.
    pub(super) fn publish(&mut self, deliveries: Vec<Delivery>, outbox: &mut Outbox) {
        for delivery in deliveries {
            let in_batch = self.batch.as_mut().and_then(|batch| batch.place(&delivery));
            if let Some(place) = in_batch {
                *place = delivery.clone();
                outbox.publish([delivery]);
            } else {
                self.pending.push_back(delivery);
            }
        }
        self.send_next(outbox);
    }

    /// What has happened since; waits until there is something. Cancel safe.
    pub(super) async fn progress(&mut self, outbox: &mut Outbox) -> Result<Progress, SessionError> {
        loop {
            self.send_next(outbox);
            let Some(batch) = &mut self.batch else {
                tokio::select! {
                    progress = outbox.progress() => return progress,
                    () = sleep_until(self.refresh_due) => {
                        self.batch = Some(Batch::of(Vec::new()));
                        continue;
                    }
                }
            };
            match &mut batch.stage {
                Stage::Sending(0) => {
                    let standing = batch.end().unwrap_or(self.standing);
                    batch.enter(Stage::Committing(self.coordinator.start_commit(standing)));
                }
                Stage::Sending(_) => match batch.heard(SENDING_TIMEOUT, outbox).await {
                    Ok(Progress::Confirmed(seqs)) => batch.arrived(seqs.len()),
                    Ok(Progress::Refused(seq, refusal)) => {
                        // One that is not even a dead letter is kept by the spool before this is called again.
                        if batch.is_dead_letter(seq) {
                            batch.arrived(1);
                        }
                        return Ok(Progress::Refused(seq, refusal));
                    }
                    Ok(other) => return Ok(other),
                    Err(error) if outbox.reports().is_over() => return Err(error),
                    Err(error) => {
                        let failure = self.coordinator.failure().await;
                        return Err(batch.failed(error, failure));
                    }
                },
                Stage::Committing(committing) => {
                    let outcome = tokio::select! {
                        biased;
                        outcome = committing => outcome.map_err(stopping)?,
                        progress = outbox.progress() => return progress,
                        () = sleep_until(batch.news + COMMITTING_TIMEOUT) => return Err(silence()),
                    };
                    match outcome {
                        Ok(()) => {
                            if let Some(confirmed) = self.committed() {
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
                    batch.enter(Stage::Sending(batch.deliveries.len()));
                    outbox.publish_anew(batch.deliveries.iter().cloned());
                }
            }
        }
    }

    /// Gives up what is under way; subscribers need not wait for it.
    pub(super) async fn close(self, outbox: &Outbox) {
        let aborting = match self.batch.map(|batch| batch.stage) {
            Some(Stage::Sending(_)) => Some(self.coordinator.start_abort()),
            // One that has failed has told so, and cannot be awaited again.
            Some(Stage::Aborting(aborting)) if !aborting.is_finished() => Some(aborting),
            _ => None,
        };
        if let Some(aborting) = aborting {
            let _ = timeout(CALL_TIMEOUT, aborting).await;
        }
        outbox.over().store(true, Ordering::Release);
    }

    /// Dead letters have transactions of their own: where their topic is closed, that is not to stop the events.
    fn send_next(&mut self, outbox: &mut Outbox) {
        if self.batch.is_some() {
            return;
        }
        let Some(first) = self.pending.front() else {
            return;
        };
        let is_dead_letter = first.is_dead_letter();
        let mut bytes = 0;
        let takes = |next: &&Delivery| {
            let takes = bytes < self.enough && next.is_dead_letter() == is_dead_letter;
            bytes += next.stored.event.bytes.len();
            takes
        };
        let count = self.pending.iter().take_while(takes).count();
        let batch = Batch::of(self.pending.drain(..count).collect());
        outbox.publish(batch.deliveries.iter().cloned());
        self.batch = Some(batch);
    }

    /// The batch is with the cluster for good.
    fn committed(&mut self) -> Option<Progress> {
        let batch = self.batch.take()?;
        self.standing = batch.end().unwrap_or(self.standing);
        self.refresh_due = Instant::now() + REFRESH_EVERY;
        self.enough = self.enough.saturating_mul(2);
        debug!(events = batch.deliveries.len(), "committed a transaction");
        let seqs = batch.deliveries.iter().map(|delivery| delivery.stored.seq);
        Some(Progress::Confirmed(seqs.collect())).filter(|_| !batch.deliveries.is_empty())
    }
}

impl Batch {
    fn of(deliveries: Vec<Delivery>) -> Self {
        Self {
            stage: Stage::Sending(deliveries.len()),
            deliveries,
            news: Instant::now(),
            tries: TRIES,
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.news = Instant::now();
    }

    /// What the outbox has heard since, within this time from the last news.
    async fn heard(
        &mut self,
        within: Duration,
        outbox: &mut Outbox,
    ) -> Result<Progress, SessionError> {
        let progress = timeout_at(self.news + within, outbox.progress()).await;
        let progress = progress.map_err(|_| silence())??;
        self.news = Instant::now();
        Ok(progress)
    }

    /// Where the relay stands once it is committed; none where it is empty.
    fn end(&self) -> Option<Standing> {
        self.deliveries.last().map(|last| Standing {
            seq: last.stored.seq,
            event: Some(last.stored.event.fingerprint()),
        })
    }

    /// So many records are with the cluster, or will never be.
    fn arrived(&mut self, records: usize) {
        if let Stage::Sending(missing) = &mut self.stage {
            *missing = missing.saturating_sub(records);
        }
    }

    /// The place of an event in it.
    fn place(&mut self, delivery: &Delivery) -> Option<&mut Delivery> {
        let seq = delivery.stored.seq;
        let index = self
            .deliveries
            .binary_search_by_key(&seq, |delivery| delivery.stored.seq)
            .ok()?;
        self.deliveries.get_mut(index)
    }

    /// What the failure of its records says of it. librdkafka tells of the records only that they were let go.
    fn failed(&self, error: SessionError, failure: Option<KafkaError>) -> SessionError {
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
        let only_letters = self.deliveries.iter().all(Delivery::is_dead_letter);
        if only_letters && is_missing_right(failure.code()) {
            let reason = DEAD_LETTER_TOPIC;
            return SessionError::Refused(Refusal { reason, detail });
        }
        SessionError::Unavailable(detail, None)
    }

    fn is_dead_letter(&self, seq: Seq) -> bool {
        let mut deliveries = self.deliveries.iter();
        deliveries.any(|delivery| delivery.stored.seq == seq && delivery.is_dead_letter())
    }
}

fn silence() -> SessionError {
    SessionError::Unavailable("the cluster does not take a transaction".to_owned(), None)
}
