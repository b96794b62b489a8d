//! What an answer waits for.

use std::future::Future;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::event::Event;
use crate::spool::{AppendError, Appended, Spool};

/// The vendor waits 2 s. What is not on disk by then is not promised, though it may still get there.
const ANSWER_LIMIT: Duration = Duration::from_millis(1900);

/// Something that keeps events for good.
pub trait Durability: Send + Sync + 'static {
    /// Keeps an event; waits until it is safe. `room` is given back when nothing waits for that any more,
    /// which may be later than the answer.
    fn keep(
        &self,
        event: Event,
        room: OwnedSemaphorePermit,
    ) -> impl Future<Output = Result<Kept, NotKept>> + Send;
}

/// An event is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is now.
    New,
    /// It was before.
    Repeated,
}

/// An event is not kept, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotKept(pub String);

impl Durability for Spool {
    async fn keep(&self, event: Event, room: OwnedSemaphorePermit) -> Result<Kept, NotKept> {
        let append = self.append_from(event, Some(room));
        let Ok(appended) = timeout(ANSWER_LIMIT, append).await else {
            return Err(NotKept("the disk did not answer in time".to_owned()));
        };
        match appended {
            Ok(Appended::New(_)) => Ok(Kept::New),
            Ok(Appended::Repeated) => Ok(Kept::Repeated),
            // What the disk said is for the log, not for whoever calls.
            Err(error @ (AppendError::Full(_) | AppendError::Busy)) => {
                Err(NotKept(error.to_string()))
            }
            Err(AppendError::Io(_) | AppendError::Failed(_) | AppendError::Damaged(_)) => {
                Err(NotKept("spool could not write".to_owned()))
            }
        }
    }
}
