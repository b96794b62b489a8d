//! Detects a stalled writer: a disk that hangs reports no error.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::{error, info};

use crate::telemetry::Reminder;

/// A writer that works on one group for longer than this is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// How often [`StallDetector::watch`] checks the writer.
const CHECK_EVERY: Duration = Duration::from_millis(200);

/// How long the writer must work without a stall before the recovery is logged.
const RECOVERED_AFTER: Duration = Duration::from_secs(5);

/// When the writer began to work on its current batch of commands; `None` while it waits.
#[derive(Debug, Default)]
pub(super) struct StallDetector(Mutex<Option<Instant>>);

impl StallDetector {
    pub(super) fn begin(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(super) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How long the writer has been working, if it is stuck.
    pub(super) fn stuck(&self) -> Option<Duration> {
        self.longer_than(STUCK_AFTER)
    }

    /// Logs when the writer is stuck, and when it has worked without a stall for a while.
    pub(super) async fn watch(&self) -> Infallible {
        let mut stuck_at: Option<Instant> = None;
        let mut reminder: Option<Reminder> = None;
        loop {
            sleep(CHECK_EVERY).await;
            if let Some(stuck) = self.stuck() {
                let now = Instant::now();
                stuck_at = Some(now);
                let reminder = reminder.get_or_insert_with(|| Reminder::new(now));
                if reminder.due(now).is_some() {
                    error!(
                        code = "disk_stalled",
                        seconds = stuck.as_secs(),
                        "disk has stalled: a write has not returned, and callbacks are refused with 503 until it \
                         does; check the disk"
                    );
                }
            } else if stuck_at
                .take_if(|at| at.elapsed() >= RECOVERED_AFTER)
                .is_some()
            {
                reminder = None;
                info!(
                    code = "disk_recovered",
                    "disk has recovered: no write has stalled for {} s",
                    RECOVERED_AFTER.as_secs()
                );
            }
        }
    }

    /// How long the writer has been working, if that is longer than `limit`.
    fn longer_than(&self, limit: Duration) -> Option<Duration> {
        let since = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(since.elapsed()).filter(|elapsed| *elapsed > limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_the_working_time_once_it_exceeds_the_limit() {
        let detector = StallDetector::default();
        assert_eq!(detector.longer_than(Duration::ZERO), None);
        detector.begin();
        std::thread::park_timeout(Duration::from_millis(20));
        let Some(elapsed) = detector.longer_than(Duration::ZERO) else {
            panic!("it is at work");
        };
        assert!(elapsed >= Duration::from_millis(20), "{elapsed:?}");
        assert_eq!(detector.longer_than(Duration::from_secs(60)), None);
        detector.end();
        assert_eq!(detector.longer_than(Duration::ZERO), None);
    }
}
