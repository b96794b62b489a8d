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
    /// A retry may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// The callback was rejected, and the quota for dead letters is used up.
    #[error("{0}")]
    DeadLettersFull(String),
}

impl Durability for Spool {
    async fn keep(&self, event: Event, permit: OwnedSemaphorePermit) -> Result<Kept, NotKept> {
        let unavailable = |reason: &str| Err(NotKept::Unavailable(reason.to_owned()));
        let append = self.append_from(event, Some(permit));
        let Ok(appended) = timeout(ANSWER_LIMIT, append).await else {
            let limit = ANSWER_LIMIT.as_secs_f64();
            return unavailable(&format!("event was not on disk within {limit} s"));
        };
        match appended {
            Ok(Appended::New(_)) => Ok(Kept::New),
            Ok(Appended::Repeated) => Ok(Kept::Repeated),
            // The disk's error is for the log, not for the client.
            Err(error @ (AppendError::Full(_) | AppendError::Busy)) => {
                unavailable(&error.to_string())
            }
            Err(AppendError::DeadLettersFull(reason)) => Err(NotKept::DeadLettersFull(reason)),
            Err(AppendError::Io(_) | AppendError::Failed(_) | AppendError::Damaged(_)) => {
                unavailable("spool write failed")
            }
        }
    }
}
