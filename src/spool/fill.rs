//! Watches how full the spool is, and estimates when it will be full.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;

use super::status::Status;

/// How often [`FillMonitor::watch`] reads the state of the spool.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// How far back the rate is measured.
const WINDOW: Duration = Duration::from_secs(10 * 60);

/// How much space there was for events, over the last [`WINDOW`].
#[derive(Debug, Default)]
pub(super) struct FillMonitor(Mutex<Samples>);

impl FillMonitor {
    /// The time until the spool is full at the current rate; `None` if it is not filling.
    pub(super) fn time_until_full(&self) -> Option<Duration> {
        self.samples().time_until_full()
    }

    /// Measures how fast the spool fills.
    pub(super) async fn watch(&self, status: &watch::Sender<Status>) -> Infallible {
        loop {
            let available = status.borrow().available_bytes;
            self.samples().add(Instant::now(), available);
            sleep(CHECK_EVERY).await;
        }
    }

    fn samples(&self) -> MutexGuard<'_, Samples> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When there was how much space, in bytes: the most of the window, and how it has shrunk since then.
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
        if *available == 0 {
            return Some(Duration::ZERO);
        }
        let taken = u128::from(most - available);
        let millis = now.duration_since(*began).as_millis() * u128::from(*available);
        Some(Duration::from_millis(
            u64::try_from(millis.checked_div(taken)?).unwrap_or(u64::MAX),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds what is available after so many seconds; returns in how many seconds the spool is full.
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
    }

    #[test]
    fn a_spool_that_empties_or_does_not_change_is_not_filling() {
        assert_eq!(full_in(&[(0, 1000), (10, 1000)]), None);
        assert_eq!(full_in(&[(0, 1000), (10, 900), (20, 1000)]), None);
        assert_eq!(full_in(&[(0, 1000), (10, 900), (700, 900)]), None);
    }

    #[test]
    fn a_full_spool_is_full_now() {
        assert_eq!(full_in(&[(0, 1000), (10, 0)]), Some(0));
        assert_eq!(full_in(&[(0, 0), (900, 0)]), Some(0));
    }
}
