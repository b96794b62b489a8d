//! Limits the exchanges that are under way at the same time.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::UpstreamError;

/// Who sent the callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The vendor, as far as signatures are checked.
    Vendor,
    /// Somebody without a valid signature.
    Unknown,
    /// The relay itself: a copy of a recall.
    Relay,
}

/// The exchanges that may be under way at the same time.
#[derive(Debug)]
pub(super) struct Slots {
    all: Arc<Semaphore>,
    unknown: Arc<Semaphore>,
    copies: Arc<Semaphore>,
}

/// A place among the exchanges.
#[derive(Debug)]
pub(super) struct ExchangeSlot {
    _all: OwnedSemaphorePermit,
    _share: Option<OwnedSemaphorePermit>,
}

impl Slots {
    pub(super) fn new(max_in_flight: usize) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.max(1)));
        Self {
            all: semaphore(max_in_flight),
            unknown: semaphore(max_in_flight / 4),
            copies: semaphore(max_in_flight / 4),
        }
    }

    pub(super) fn take(&self, sender: Sender) -> Result<ExchangeSlot, UpstreamError> {
        let acquire = |semaphore: &Arc<Semaphore>| {
            let permit = Arc::clone(semaphore).try_acquire_owned();
            permit.map_err(|_| UpstreamError::TooMany)
        };
        let share = match sender {
            Sender::Vendor => None,
            Sender::Unknown => Some(acquire(&self.unknown)?),
            Sender::Relay => Some(acquire(&self.copies)?),
        };
        Ok(ExchangeSlot {
            _all: acquire(&self.all)?,
            _share: share,
        })
    }
}
