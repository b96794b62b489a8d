//! Watches how full the spool is, and estimates when it will be full. Only events and dead letters that cannot be
//! purged count.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::status::Status;
use crate::telemetry::Reminder;

/// How often [`FillMonitor::watch`] reads the state of the spool.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The level at which a warning begins, in percent.
const WARN_AT: u64 = 80;

/// The level at which it ends: lower, so that it does not flap.
const ENOUGH_AT: u64 = 70;

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

    /// Measures how fast the spool fills, and logs when it is nearly full. Repeats that, and that callbacks are
    /// refused, for as long as it lasts.
    pub(super) async fn watch(&self, status: &watch::Sender<Status>) -> Infallible {
        let mut level = FillLevel::default();
        let mut refusing: Option<Reminder> = None;
        loop {
            let now = Instant::now();
            let status = status.borrow().clone();
            self.samples().add(now, status.available_bytes);
            // The writer logs the beginning and the end.
            refusing = status
                .refusing
                .is_some()
                .then(|| refusing.unwrap_or_else(|| Reminder::new(now)));
            let refused_for = refusing.as_mut().and_then(|reminder| reminder.due(now));
            if let (Some(reason), Some(lasted)) = (&status.refusing, refused_for) {
                error!(
                    code = "callbacks_refused", %reason, seconds = lasted.as_secs(),
                    "callbacks are still refused with 503, and the vendor does not repeat them; fix the cause"
                );
            }
            match level.check(now, &status) {
                // While callbacks are refused, that is what has to be said.
                (percent, Some(FillLine::Filling(lasted))) if status.refusing.is_none() => {
                    log_filling(&status, percent, lasted, self.time_until_full());
                }
                (percent, Some(FillLine::HasSpace)) => info!(
                    code = "spool_has_space",
                    percent, "spool has enough space again"
                ),
                _ => {}
            }
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
        let taken = u128::from(most - available);
        let millis = now.duration_since(*began).as_millis() * u128::from(*available);
        Some(Duration::from_millis(
            u64::try_from(millis.checked_div(taken)?).unwrap_or(u64::MAX),
        ))
    }
}

/// Whether the spool is nearly full.
#[derive(Debug, Default)]
struct FillLevel {
    /// The largest capacity so far, in bytes: if other programs fill the disk, the capacity shrinks to what is left.
    capacity: u64,
    nearly_full: Option<Reminder>,
}

/// What is to be logged.
#[derive(Debug, PartialEq, Eq)]
enum FillLine {
    /// The spool is nearly full, since when.
    Filling(Duration),
    HasSpace,
}

impl FillLevel {
    /// Checks the level; returns it in percent, and what is to be logged now.
    fn check(&mut self, now: Instant, status: &Status) -> (u64, Option<FillLine>) {
        self.capacity = self.capacity.max(status.capacity_bytes);
        let taken = u128::from(self.capacity.saturating_sub(status.available_bytes));
        let percent = (taken * 100).checked_div(u128::from(self.capacity));
        let percent = percent.and_then(|percent| u64::try_from(percent).ok());
        let percent = percent.unwrap_or(100);
        let line = match &mut self.nearly_full {
            None if percent >= WARN_AT => {
                self.nearly_full = Some(Reminder::new(now));
                Some(FillLine::Filling(Duration::ZERO))
            }
            None => None,
            Some(_) if percent <= ENOUGH_AT => {
                self.nearly_full = None;
                Some(FillLine::HasSpace)
            }
            Some(reminder) => reminder.due(now).map(FillLine::Filling),
        };
        (percent, line)
    }
}

fn log_filling(status: &Status, percent: u64, lasted: Duration, until_full: Option<Duration>) {
    let full_in = until_full.map(|time| Duration::from_secs(time.as_secs()));
    let outlook = full_in.map_or_else(
        || "and not filling further".to_owned(),
        |time| format!("and will be full in {}", humantime::format_duration(time)),
    );
    warn!(
        code = "spool_filling",
        percent,
        available_bytes = status.available_bytes,
        seconds = lasted.as_secs(),
        full_in_seconds = full_in.map(|time| time.as_secs()),
        "spool is {percent} % full of unconfirmed events and dead letters, {outlook}; when it is full, callbacks are \
         refused: repair the sink that is down, raise spool.max_bytes, or make space on the disk"
    );
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
    fn warns_at_80_percent_until_there_is_space_again() {
        let began = Instant::now();
        let mut level = FillLevel::default();
        let mut check = |minute: u64, available| {
            let now = began + Duration::from_secs(minute * 60);
            let (percent, line) = level.check(now, &status(1000, available));
            Some(match line? {
                FillLine::Filling(lasted) => ("filling", percent, lasted.as_secs() / 60),
                FillLine::HasSpace => ("has space", percent, 0),
            })
        };
        assert_eq!(check(0, 1000), None);
        assert_eq!(check(1, 210), None);
        assert_eq!(check(2, 200), Some(("filling", 80, 0)));
        assert_eq!(check(2, 100), None);
        assert_eq!(check(3, 0), Some(("filling", 100, 1)));
        assert_eq!(check(8, 290), Some(("filling", 71, 6)));
        assert_eq!(check(9, 300), Some(("has space", 70, 0)));
        assert_eq!(check(60, 250), None);
        assert_eq!(check(61, 150), Some(("filling", 85, 0)));
    }

    #[test]
    fn warns_if_other_programs_fill_the_disk() {
        let now = Instant::now();
        let mut level = FillLevel::default();
        assert_eq!(level.check(now, &status(1000, 1000)), (0, None));
        let filling = Some(FillLine::Filling(Duration::ZERO));
        assert_eq!(level.check(now, &status(150, 150)), (85, filling));
    }

    #[test]
    fn a_spool_without_any_space_is_full() {
        let filling = Some(FillLine::Filling(Duration::ZERO));
        let full = FillLevel::default().check(Instant::now(), &status(0, 0));
        assert_eq!(full, (100, filling));
    }

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
        assert_eq!(full_in(&[(0, 1000), (10, 0)]), Some(0));
    }

    #[test]
    fn a_spool_that_empties_or_does_not_change_is_not_filling() {
        assert_eq!(full_in(&[(0, 1000), (10, 1000)]), None);
        assert_eq!(full_in(&[(0, 1000), (10, 900), (20, 1000)]), None);
        assert_eq!(full_in(&[(0, 1000), (10, 900), (700, 900)]), None);
    }
}
