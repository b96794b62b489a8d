//! Whether the writer is stuck: a disk that hangs says nothing by itself.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Since when the writer has been at work on what it took last.
#[derive(Debug, Default)]
pub(super) struct Busy(Mutex<Option<Instant>>);

impl Busy {
    pub(super) fn begin(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(super) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How long it has been at work, if that is longer than `limit`.
    pub(super) fn longer_than(&self, limit: Duration) -> Option<Duration> {
        let since = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(since.elapsed()).filter(|elapsed| *elapsed > limit)
    }
}
