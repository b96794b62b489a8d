//! Decides when a state that lasts is logged, and logged again.

use std::time::{Duration, Instant};

use super::LoggedTexts;

/// After how long a state is logged; later, it is logged every hour.
const FIRST: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
];

const THEN_EVERY: Duration = Duration::from_secs(60 * 60);

/// When to log a state that lasts: at once, after 1, 5 and 30 minutes, and then every hour.
#[derive(Debug)]
pub struct Reminder {
    began: Instant,
    /// How long the state must have lasted for the next reminder.
    next: Duration,
    /// The reasons that were logged.
    logged: LoggedTexts,
}

impl Reminder {
    /// Reminds of a state that began `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            began: now,
            next: FIRST[0],
            logged: LoggedTexts::default(),
        }
    }

    /// How long the state has lasted.
    #[must_use]
    pub fn lasted(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// If the state is to be logged, how long it has lasted. If several reminders are overdue, there is only one.
    pub fn due(&mut self, now: Instant) -> Option<Duration> {
        let lasted = self.lasted(now);
        if lasted < self.next {
            return None;
        }
        let hours = u32::try_from(lasted.as_secs() / THEN_EVERY.as_secs()).unwrap_or(u32::MAX - 1);
        self.next = FIRST
            .into_iter()
            .find(|first| *first > lasted)
            .unwrap_or(THEN_EVERY * (hours + 1));
        Some(lasted)
    }

    /// Like [`Self::due`]; a new reason is to be logged at once, but only once, because reasons may alternate.
    pub fn due_for(&mut self, reason: &str, now: Instant) -> Option<Duration> {
        let is_new = self.logged.is_new(reason, now);
        self.due(now).or_else(|| is_new.then(|| self.lasted(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reminds_at_once_after_1_5_and_30_minutes_and_then_hourly() {
        let began = Instant::now();
        let mut reminder = Reminder::new(began);
        let mut minutes = Vec::new();
        for second in 0..=4 * 3600 {
            if let Some(lasted) = reminder.due(began + Duration::from_secs(second)) {
                assert_eq!(lasted, Duration::from_secs(second));
                minutes.push(second / 60);
            }
        }
        assert_eq!(minutes, [0, 1, 5, 30, 60, 120, 180, 240]);
    }

    #[test]
    fn a_reason_is_logged_once_however_long_the_state_lasts() {
        let began = Instant::now();
        let mut reminder = Reminder::new(began);
        let mut minutes = Vec::new();
        for minute in 0..=120 {
            let reason = if minute % 2 == 0 { "full" } else { "I/O error" };
            let now = began + Duration::from_secs(minute * 60 + minute);
            minutes.extend(reminder.due_for(reason, now).map(|_| minute));
        }
        assert_eq!(minutes, [0, 1, 5, 30, 60, 119]);
    }

    #[test]
    fn several_overdue_reminders_are_one() {
        let began = Instant::now();
        let mut reminder = Reminder::new(began);
        let after = |minutes: u64| began + Duration::from_secs(minutes * 60);
        let mut due = |minutes: u64| reminder.due(after(minutes)).is_some();
        let found = [7_u64, 29, 30, 59, 200, 239, 240].map(&mut due);
        assert_eq!(found, [true, false, true, false, true, false, true]);
    }
}
