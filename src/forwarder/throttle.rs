//! Throttles catch-up while callbacks arrive.

use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use crate::event::Seq;

/// Events published before other tasks get to run: this bounds how long callbacks wait.
const BATCH: u64 = 64;

/// The same while no callbacks arrive. If this were smaller, sinks would send small batches.
const BATCH_IDLE: u64 = 1000;

/// A sink with more unpublished events than this has a backlog.
const BACKLOG: u64 = 1000;

/// Pause between two batches of a backlog while callbacks arrive.
const PAUSE: Duration = Duration::from_millis(2);

/// Callbacks are arriving if the newest one is not older than this.
const RECENT: Duration = Duration::from_millis(20);

/// Publishes events in batches. While callbacks arrive, a backlog is published only slightly faster than they arrive,
/// or at the rate of one minimum batch per pause if that is higher.
#[derive(Debug)]
pub(super) struct Throttle {
    last: Seq,
    /// How many events were appended between the last two pauses.
    arrived: u64,
    last_arrival_at: Option<Instant>,
}

impl Throttle {
    /// `last` is the newest event.
    pub(super) const fn new(last: Seq) -> Self {
        Self {
            last,
            arrived: 0,
            last_arrival_at: None,
        }
    }

    /// The maximum size of the next batch.
    pub(super) fn batch(&self) -> usize {
        let batch = if self.is_idle() {
            BATCH_IDLE
        } else {
            BATCH.max(self.arrived + self.arrived / 8)
        };
        usize::try_from(batch).unwrap_or(usize::MAX)
    }

    /// Whether no callback has arrived recently.
    fn is_idle(&self) -> bool {
        self.last_arrival_at.is_none_or(|at| at.elapsed() >= RECENT)
    }

    /// Lets other tasks run. `position` is the last event published, `last` the newest event.
    pub(super) async fn pause(&mut self, position: Seq, last: Seq) {
        self.arrived = last.0.saturating_sub(self.last.0);
        self.last = last;
        if self.arrived > 0 {
            self.last_arrival_at = Some(Instant::now());
        }
        let backlog = last.0.saturating_sub(position.0) > BACKLOG;
        if self.is_idle() || !backlog {
            yield_now().await;
        } else {
            sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    /// Whether a pause lasts longer than one yield to other tasks.
    async fn pauses(throttle: &mut Throttle, position: u64, last: u64) -> bool {
        let began = Instant::now();
        let mut pause = pin!(throttle.pause(Seq(position), Seq(last)));
        assert_eq!(pause.as_mut().now_or_never(), None);
        if pause.as_mut().now_or_never().is_some() {
            return false;
        }
        pause.await;
        assert!(began.elapsed() >= PAUSE);
        true
    }

    #[tokio::test]
    async fn throttles_a_backlog_only_while_callbacks_arrive() {
        let mut throttle = Throttle::new(Seq(5000));
        assert!(!pauses(&mut throttle, 0, 5000).await);
        assert!(pauses(&mut throttle, 64, 5001).await);
        // The next commit may still be in progress.
        throttle.last_arrival_at = Some(Instant::now());
        assert!(pauses(&mut throttle, 128, 5001).await);
        sleep(RECENT).await;
        assert!(!pauses(&mut throttle, 192, 5001).await);
    }

    #[tokio::test]
    async fn does_not_throttle_a_sink_that_keeps_up() {
        let mut throttle = Throttle::new(Seq(5000));
        assert!(!pauses(&mut throttle, 5000, 5000 + BACKLOG).await);
    }

    #[tokio::test]
    async fn batches_exceed_the_arrival_rate() {
        let mut throttle = Throttle::new(Seq(5000));
        assert_eq!(throttle.batch(), 1000);
        for (last, batch) in [(5010, 64), (5110, 112), (5110, 64)] {
            throttle.pause(Seq(0), Seq(last)).await;
            throttle.last_arrival_at = Some(Instant::now());
            assert_eq!(throttle.batch(), batch, "{last}");
        }
        sleep(RECENT).await;
        assert_eq!(throttle.batch(), 1000);
    }
}
