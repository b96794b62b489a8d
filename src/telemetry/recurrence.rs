//! Decides when something that happens again and again is logged.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Reminder;

/// After this time without an occurrence, the next one begins a new series.
const SERIES_ENDS_AFTER: Duration = Duration::from_secs(60);

/// When to log something that may happen thousands of times a second: the first time, and then as [`Reminder`] does
/// while it goes on.
#[derive(Debug, Default)]
pub struct Recurrence(Mutex<Option<Series>>);

#[derive(Debug)]
struct Series {
    reminder: Reminder,
    last: Instant,
    times: u64,
}

impl Recurrence {
    /// It has happened. If it is to be logged: for how long it has been happening, and how many times.
    pub fn occurred(&self, now: Instant) -> Option<(Duration, u64)> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ended = current.take_if(|series| now.duration_since(series.last) >= SERIES_ENDS_AFTER);
        let series = current.get_or_insert_with(|| Series {
            reminder: Reminder::new(now),
            last: now,
            times: 0,
        });
        series.last = now;
        series.times += 1;
        let lasted = series.reminder.due(now)?;
        Some((lasted, series.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_logged_at_its_beginning_and_then_rarely() {
        let began = Instant::now();
        let recurrence = Recurrence::default();
        let at = |second| {
            let logged = recurrence.occurred(began + Duration::from_secs(second));
            logged.map(|(lasted, times)| (lasted.as_secs(), times))
        };
        assert_eq!(at(0), Some((0, 1)));
        assert_eq!(at(0), None);
        assert_eq!(at(59), None);
        assert_eq!(at(61), Some((61, 4)));
        assert_eq!(at(62), None);
        // After a quiet minute it is news again.
        assert_eq!(at(122), Some((0, 1)));
    }
}
