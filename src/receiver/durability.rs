//! Stores an event durably before it is answered.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use crate::event::{Event, Seq};
use crate::sink::{ConfirmWaiter, Confirms};
use crate::spool::{AppendError, Appended, Spool};

/// The vendor waits 2 s. If an event is not durable by then, the answer is 503; the event may still be stored later.
const ANSWER_LIMIT: Duration = Duration::from_millis(1900);

/// Durable storage for events.
pub trait Durability: Send + Sync + 'static {
    /// Stores an event and waits until it is durable. Holds `permit` until the event is durable or dropped, even if the
    /// client was answered before.
    fn keep(
        &self,
        event: Event,
        permit: OwnedSemaphorePermit,
    ) -> impl Future<Output = Result<Stored, NotKept>> + Send;

    /// Waits until the brokers have confirmed a durable event, if answers wait for that. `began` is when the head of
    /// its request arrived.
    fn wait_for_brokers(
        &self,
        stored: &Stored,
        began: Instant,
    ) -> impl Future<Output = AnswerAfter> + Send {
        let _ = (stored, began);
        std::future::ready(AnswerAfter::Disk)
    }
}

/// An event that is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its number.
    pub seq: Seq,
    /// Whether this call stored it. False if it had been stored before.
    pub is_new: bool,
    /// The event's partition at each broker, in the order of [`Storage`]'s brokers. Empty if answers wait for none.
    pub partitions: Vec<usize>,
}

/// A durable event whose recall is answered OK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Whether this request stored it. False if it had been stored before.
    pub is_new: bool,
    /// `Broker` if every broker has confirmed it, too.
    pub after: AnswerAfter,
}

/// Where an event must be before its recall is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswerAfter {
    /// On the relay's disk.
    #[default]
    Disk,
    /// Confirmed by every configured broker, too.
    Broker,
}

impl AnswerAfter {
    /// The setting's value, and the label in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Broker => "broker",
        }
    }
}

/// Why an event was not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    /// A retry may succeed: the reason, and what an operator can do.
    #[error("{0}")]
    Unavailable(String, &'static str),
    /// The callback was rejected, and the quota for dead letters is used up.
    #[error("{0}")]
    DeadLettersFull(String),
}

/// The spool, and the brokers that answers wait for.
#[derive(Debug)]
pub struct Storage {
    spool: Spool,
    /// One for each broker. Empty with `answer_after = "disk"`.
    confirms: Vec<Arc<Confirms>>,
}

impl Storage {
    /// Stores events in `spool`; answers wait for all `confirms`.
    #[must_use]
    pub const fn new(spool: Spool, confirms: Vec<Arc<Confirms>>) -> Self {
        Self { spool, confirms }
    }

    /// Appends an event to the spool. Waits until it is on disk, or the vendor has given up.
    async fn append(
        &self,
        event: Event,
        permit: OwnedSemaphorePermit,
    ) -> Result<Appended, NotKept> {
        let append = self.spool.append_from(event, Some(permit));
        let Ok(appended) = timeout(ANSWER_LIMIT, append).await else {
            let limit = ANSWER_LIMIT.as_secs_f64();
            let reason = format!("event was not on disk within {limit} s");
            return Err(NotKept::Unavailable(
                reason,
                "use a faster disk, or repair it",
            ));
        };
        let (reason, advice) = match appended {
            Ok(appended) => return Ok(appended),
            Err(AppendError::DeadLettersFull(reason)) => {
                return Err(NotKept::DeadLettersFull(reason));
            }
            Err(error @ AppendError::Full(_)) => (
                error.to_string(),
                "repair the broker that is down, raise spool.max_bytes, or make space on the disk",
            ),
            Err(error @ AppendError::Busy) => (
                error.to_string(),
                "use a faster disk, or raise spool.max_waiting",
            ),
            // The disk's error is for the log, not for the client.
            Err(AppendError::Io(_) | AppendError::Failed(_) | AppendError::Damaged(_)) => (
                "spool write failed".to_owned(),
                "repair the disk; the log has its error",
            ),
        };
        Err(NotKept::Unavailable(reason, advice))
    }
}

impl Durability for Storage {
    async fn keep(&self, event: Event, permit: OwnedSemaphorePermit) -> Result<Stored, NotKept> {
        let confirms = self.confirms.iter();
        let partitions = confirms
            .map(|confirms| confirms.partition(&event))
            .collect();
        let (seq, is_new) = match self.append(event, permit).await? {
            Appended::New(seq) => (seq, true),
            // The first answer may still wait: this one waits for the same confirms.
            Appended::Repeated(seq) => (seq, false),
        };
        Ok(Stored {
            seq,
            is_new,
            partitions,
        })
    }

    async fn wait_for_brokers(&self, stored: &Stored, began: Instant) -> AnswerAfter {
        if self.confirms.is_empty() {
            return AnswerAfter::Disk;
        }
        let now = Instant::now();
        let is_cursor_proof = self.spool.dead_letters() == 0 && self.spool.unreadable() == 0;
        let confirms = self.confirms.iter().zip(&stored.partitions);
        let waiters: Vec<ConfirmWaiter<'_>> = confirms
            .map(|(confirms, partition)| {
                confirms.waiter(stored.seq, *partition, is_cursor_proof, now)
            })
            .collect();
        let mut after = AnswerAfter::Broker;
        // All of them have the same deadline, so it does not matter that they are asked one after the other.
        for waiter in waiters {
            if !waiter.wait(began).await {
                after = AnswerAfter::Disk;
            }
        }
        after
    }
}
