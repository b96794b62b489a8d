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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_how_long_it_has_been_at_work_beyond_the_limit() {
        let busy = Busy::default();
        assert_eq!(busy.longer_than(Duration::ZERO), None);
        busy.begin();
        std::thread::park_timeout(Duration::from_millis(20));
        let Some(elapsed) = busy.longer_than(Duration::ZERO) else {
            panic!("it is at work");
        };
        assert!(elapsed >= Duration::from_millis(20), "{elapsed:?}");
        assert_eq!(busy.longer_than(Duration::from_secs(60)), None);
        busy.end();
        assert_eq!(busy.longer_than(Duration::ZERO), None);
    }
}
