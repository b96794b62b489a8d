//! Stores an event durably before it is answered.

use std::future::Future;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::event::Event;
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
    ) -> impl Future<Output = Result<Kept, NotKept>> + Send;
}

/// The event is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It was stored by this call.
    New,
    /// It had been stored before.
    Repeated,
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

impl Durability for Spool {
    async fn keep(&self, event: Event, permit: OwnedSemaphorePermit) -> Result<Kept, NotKept> {
        let append = self.append_from(event, Some(permit));
        let Ok(appended) = timeout(ANSWER_LIMIT, append).await else {
            let limit = ANSWER_LIMIT.as_secs_f64();
            let reason = format!("event was not on disk within {limit} s");
            return Err(NotKept::Unavailable(
                reason,
                "use a faster disk, or repair it",
            ));
        };
        let (reason, advice) = match appended {
            Ok(Appended::New(_)) => return Ok(Kept::New),
            Ok(Appended::Repeated) => return Ok(Kept::Repeated),
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
