//! Watches how full the spool is, and estimates when it will be full. Only events and dead letters that cannot be
//! purged count.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::status::Status;
use crate::telemetry::Reminder;

/// How often [`FillMonitor::watch`] reads the state of the spool.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The level at which a warning begins, in percent.
pub(super) const WARN_AT: u64 = 80;

/// The level at which it ends: lower, so that it does not flap.
const ENOUGH_AT: u64 = 70;

/// How far back the rate is measured.
const WINDOW: Duration = Duration::from_secs(10 * 60);

/// How full the spool is, and how many bytes were available for events over the last [`WINDOW`].
#[derive(Debug, Default)]
pub(super) struct FillMonitor {
    samples: Mutex<Samples>,
    /// The largest capacity so far, in bytes: if other programs fill the disk, the capacity shrinks to what is left.
    largest_capacity: AtomicU64,
}

impl FillMonitor {
    /// The time until the spool is full at the current rate; `None` if it is not filling.
    pub(super) fn time_until_full(&self) -> Option<Duration> {
        self.samples().time_until_full()
    }

    /// How much of the largest capacity so far is taken, in percent.
    pub(super) fn percent(&self, status: &Status) -> u64 {
        let now = status.capacity_bytes;
        let before = self.largest_capacity.fetch_max(now, Ordering::Relaxed);
        let capacity = before.max(now);
        let taken = capacity.saturating_sub(status.available_bytes);
        percent_of(taken, capacity)
    }

    /// Measures how fast the spool fills, and logs while it is nearly full.
    pub(super) async fn watch(&self, status: &watch::Sender<Status>) -> Infallible {
        let mut level = FillLevel::default();
        let mut reminder: Option<Reminder> = None;
        loop {
            let now = Instant::now();
            let status = status.borrow().clone();
            self.samples().add(now, status.available_bytes);
            let percent = self.percent(&status);
            level.update(percent);
            if !level.is_nearly_full {
                if reminder.take().is_some() {
                    info!(
                        code = "spool_has_space",
                        percent, "spool has enough space again"
                    );
                }
            // While callbacks are refused, the writer logs that instead.
            } else if status.refusing.is_none()
                && let Some(lasted) = reminder.get_or_insert_with(|| Reminder::new(now)).due(now)
            {
                warn!(
                    code = "spool_filling",
                    percent,
                    available_bytes = status.available_bytes,
                    seconds = lasted.as_secs(),
                    full_in_seconds = self.time_until_full().map(|time| time.as_secs()),
                    "spool is nearly full: unconfirmed events, dead letters or other programs' files take its space, \
                     and when it is full callbacks are refused; repair the sink that is down, raise spool.max_bytes, \
                     or make space on the disk"
                );
            }
            sleep(CHECK_EVERY).await;
        }
    }

    fn samples(&self) -> MutexGuard<'_, Samples> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Samples of the available bytes since the maximum within the window; they only decrease.
#[derive(Debug, Default)]
struct Samples(VecDeque<(Instant, u64)>);

impl Samples {
    fn add(&mut self, now: Instant, available: u64) {
        // The rate is measured since the space was largest: earlier samples with less space do not count.
        while self.0.back().is_some_and(|(_, less)| *less <= available) {
            self.0.pop_back();
        }
        self.0.push_back((now, available));
        while let Some((at, _)) = self.0.front()
            && now.saturating_duration_since(*at) > WINDOW
        {
            self.0.pop_front();
        }
    }

    fn time_until_full(&self) -> Option<Duration> {
        let ((began, most), (now, available)) = (self.0.front()?, self.0.back()?);
        let seconds = now.duration_since(*began).as_secs();
        let left = seconds.saturating_mul(*available);
        left.checked_div(most - available).map(Duration::from_secs)
    }
}

/// Whether the spool is nearly full.
#[derive(Debug, Default)]
struct FillLevel {
    is_nearly_full: bool,
}

impl FillLevel {
    fn update(&mut self, percent: u64) {
        let limit = if self.is_nearly_full {
            ENOUGH_AT + 1
        } else {
            WARN_AT
        };
        self.is_nearly_full = percent >= limit;
    }
}

/// How much of a capacity is taken, in percent; 100 if there is none.
pub(super) fn percent_of(taken: u64, capacity: u64) -> u64 {
    let percent = taken.saturating_mul(100).checked_div(capacity);
    percent.unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Seq;

    fn status(capacity_bytes: u64, available_bytes: u64) -> Status {
        Status {
            refusing: None,
            first: Seq(1),
            last: Seq(0),
            used_bytes: 0,
            dead_letters: 0,
            capacity_bytes,
            available_bytes,
        }
    }

    #[test]
    fn is_nearly_full_from_80_percent_until_70_percent() {
        let (monitor, mut level) = (FillMonitor::default(), FillLevel::default());
        let mut update = |available| {
            let percent = monitor.percent(&status(1000, available));
            level.update(percent);
            (percent, level.is_nearly_full)
        };
        assert_eq!(update(1000), (0, false));
        assert_eq!(update(201), (79, false));
        assert_eq!(update(200), (80, true));
        assert_eq!(update(0), (100, true));
        assert_eq!(update(290), (71, true));
        assert_eq!(update(300), (70, false));
        assert_eq!(update(250), (75, false));
        assert_eq!(update(150), (85, true));
    }

    #[test]
    fn fills_if_other_programs_fill_the_disk() {
        let monitor = FillMonitor::default();
        assert_eq!(monitor.percent(&status(1000, 1000)), 0);
        assert_eq!(monitor.percent(&status(150, 150)), 85);
    }

    #[test]
    fn a_spool_without_any_space_is_full() {
        let monitor = FillMonitor::default();
        assert_eq!(monitor.percent(&status(0, 0)), 100);
    }

    /// Adds samples (seconds, available bytes); returns the seconds until the spool is full.
    fn full_in(samples: &[(u64, u64)]) -> Option<u64> {
        let began = Instant::now();
        let mut history = Samples::default();
        for (second, available) in samples {
            history.add(began + Duration::from_secs(*second), *available);
        }
        history.time_until_full().map(|time| time.as_secs())
    }

    #[test]
    fn time_until_full_follows_the_rate_since_the_space_was_largest() {
        assert_eq!(full_in(&[]), None);
        assert_eq!(full_in(&[(0, 1000)]), None);
        assert_eq!(full_in(&[(0, 1000), (10, 900)]), Some(90));
        assert_eq!(full_in(&[(0, 1000), (100, 1000), (110, 900)]), Some(90));
        assert_eq!(full_in(&[(0, 1000), (10, 900), (20, 850)]), Some(113));
        assert_eq!(full_in(&[(0, 1000), (10, 0)]), Some(0));
    }

    #[test]
    fn a_spool_that_empties_or_does_not_change_is_not_filling() {
        assert_eq!(full_in(&[(0, 1000), (10, 1000)]), None);
        assert_eq!(full_in(&[(0, 1000), (10, 900), (20, 1000)]), None);
        assert_eq!(full_in(&[(0, 1000), (10, 900), (700, 900)]), None);
    }
}
