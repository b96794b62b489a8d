//! Decides when a state that lasts is logged again.

use std::time::{Duration, Instant};

/// After how long a lasting state is logged again; later, it is logged every hour.
const FIRST: [Duration; 3] = [
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
];

const THEN_EVERY: Duration = Duration::from_secs(60 * 60);

/// When to log a state again that began a while ago: after 1, 5 and 30 minutes, and then every hour.
#[derive(Debug, Clone)]
pub struct Reminder {
    began: Instant,
    /// How long the state must have lasted for the next reminder.
    next: Duration,
}

impl Reminder {
    /// Reminds of a state that began `now` and was logged then.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self {
            began: now,
            next: FIRST[0],
        }
    }

    /// How long the state has lasted.
    #[must_use]
    pub fn lasted(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// If the state is to be logged again, how long it has lasted. If several reminders are overdue, there is only one.
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reminds_after_1_5_and_30_minutes_and_then_hourly() {
        let began = Instant::now();
        let mut reminder = Reminder::new(began);
        let mut minutes = Vec::new();
        for second in 0..=4 * 3600 {
            if let Some(lasted) = reminder.due(began + Duration::from_secs(second)) {
                assert_eq!(lasted, Duration::from_secs(second));
                minutes.push(second / 60);
            }
        }
        assert_eq!(minutes, [1, 5, 30, 60, 120, 180, 240]);
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
