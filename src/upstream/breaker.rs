//! The breaker: after several failures in a row, callbacks do not wait for the backend until it has answered again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::{error, info};

use crate::telemetry::Reminder;

/// How many exchanges in a row must fail to open the breaker.
const FAILURES: u32 = 5;

/// How often to probe.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// If no callback could be used as a probe for this long, one without a valid signature is used.
const UNSIGNED_PROBE_AFTER: Duration = Duration::from_secs(5);

/// If there was no probe for this long, the next one is waited for: the backend may well answer again.
const WAIT_AFTER: Duration = Duration::from_secs(10);

/// If the breaker opens again within this time, that is the same outage for the log.
const SAME_OUTAGE: Duration = Duration::from_mins(1);

/// What to do with a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    /// Hand it on, and wait for the answer.
    Exchange,
    /// Hand it on as a probe, and wait for the answer.
    AwaitedProbe,
    /// Hand it on as a probe, but do not wait.
    Probe,
    /// Do not hand it on.
    Refused,
}

/// Whether the backend answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendHealth {
    /// It has answered lately, or has not been asked yet.
    Up,
    /// It has failed several times in a row.
    Down {
        /// The latest reason.
        reason: String,
        /// When this began.
        since: SystemTime,
    },
}

/// Counts failures, and logs when the backend goes down and comes up.
#[derive(Debug)]
pub(super) struct Breaker {
    url: String,
    state: Mutex<BreakerState>,
}

#[derive(Debug, Default)]
struct BreakerState {
    /// Failures in a row.
    failures: u32,
    open: Option<OpenState>,
    /// When the breaker closed last, and what had been logged.
    closed: Option<(Instant, Reminder)>,
}

#[derive(Debug)]
struct OpenState {
    since: SystemTime,
    reason: String,
    reminder: Reminder,
    /// Whether this opening is in the log, so that its end has to be, too.
    is_logged: bool,
    /// When the next probe may start.
    next_probe: Instant,
    /// Callbacks that got no answer from the backend.
    failed: u64,
}

impl Breaker {
    pub(super) fn new(url: String) -> Self {
        Self {
            url,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, BreakerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn health(&self) -> BackendHealth {
        match &self.state().open {
            None => BackendHealth::Up,
            Some(open) => BackendHealth::Down {
                reason: open.reason.clone(),
                since: open.since,
            },
        }
    }

    /// Decides about a callback, which has a valid signature or not.
    pub(super) fn ask(&self, is_signed: bool, now: Instant) -> Permission {
        let mut state = self.state();
        let Some(open) = &mut state.open else {
            return Permission::Exchange;
        };
        open.failed += 1;
        let overdue = now.checked_duration_since(open.next_probe);
        let patience = if is_signed {
            Duration::ZERO
        } else {
            UNSIGNED_PROBE_AFTER
        };
        let Some(overdue) = overdue.filter(|overdue| *overdue >= patience) else {
            return Permission::Refused;
        };
        open.next_probe = now + PROBE_EVERY;
        if overdue >= WAIT_AFTER {
            Permission::AwaitedProbe
        } else {
            Permission::Probe
        }
    }

    /// An exchange succeeded. Only a probe closes the breaker: others began before it opened.
    pub(super) fn succeeded(&self, is_probe: bool, now: Instant) {
        let mut state = self.state();
        if state.open.is_some() && !is_probe {
            return;
        }
        state.failures = 0;
        if let Some(open) = state.open.take() {
            if open.is_logged {
                info!(
                    code = "upstream_up",
                    url = self.url,
                    down_seconds = open.reminder.lasted(now).as_secs(),
                    failed = open.failed,
                    "backend answers again"
                );
            }
            state.closed = Some((now, open.reminder));
        }
    }

    pub(super) fn failed(&self, reason: &str, now: Instant) {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        let failures = state.failures;
        if failures < FAILURES {
            return;
        }
        let closed = state.closed.take();
        let open = state.open.get_or_insert_with(|| OpenState {
            since: SystemTime::now(),
            reason: String::new(),
            reminder: closed
                .filter(|(at, _)| now.saturating_duration_since(*at) < SAME_OUTAGE)
                .map_or_else(|| Reminder::new(now), |(_, reminder)| reminder),
            is_logged: false,
            next_probe: now + PROBE_EVERY,
            failed: u64::from(failures),
        });
        reason.clone_into(&mut open.reason);
        self.log(open, now);
    }

    /// Logs again that the backend is down if it has lasted. To be called every second or so.
    pub(super) fn remind(&self, now: Instant) {
        if let Some(open) = &mut self.state().open {
            self.log(open, now);
        }
    }

    fn log(&self, open: &mut OpenState, now: Instant) {
        let Some(lasted) = open.reminder.due_for(&open.reason, now) else {
            return;
        };
        open.is_logged = true;
        error!(
            code = "upstream_down",
            url = self.url,
            reason = open.reason,
            seconds = lasted.as_secs(),
            failed = open.failed,
            "backend does not answer: callbacks other than recalls are answered at once as upstream.on_failure says, and \
             one a second is also sent to the backend as a probe; repair the backend or correct upstream.url"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::CapturedLog;

    fn breaker() -> Breaker {
        Breaker::new("http://b/".to_owned())
    }

    fn fail(breaker: &Breaker, now: Instant) {
        for _ in 0..FAILURES {
            breaker.failed("refused", now);
        }
    }

    #[test]
    fn opens_after_failures_in_a_row_and_closes_when_a_probe_is_answered() {
        let now = Instant::now();
        let breaker = breaker();
        for _ in 0..3 {
            for _ in 1..FAILURES {
                breaker.failed("late", now);
            }
            assert_eq!(breaker.ask(true, now), Permission::Exchange);
            breaker.succeeded(false, now);
        }
        assert_eq!(breaker.health(), BackendHealth::Up);

        fail(&breaker, now);
        let is_down = || matches!(breaker.health(), BackendHealth::Down { reason, .. } if reason == "refused");
        assert!(is_down());
        assert_eq!(breaker.ask(true, now), Permission::Refused);
        // It began before.
        breaker.succeeded(false, now);
        assert!(is_down());
        breaker.succeeded(true, now);
        assert_eq!(breaker.ask(true, now), Permission::Exchange);
        assert_eq!(breaker.health(), BackendHealth::Up);
    }

    #[test]
    fn one_callback_a_second_is_a_probe() {
        let now = Instant::now();
        let breaker = breaker();
        fail(&breaker, now);
        let later = now + PROBE_EVERY;
        assert_eq!(breaker.ask(true, later), Permission::Probe);
        assert_eq!(breaker.ask(true, later), Permission::Refused);
        breaker.failed("late", later);
        assert_eq!(breaker.ask(true, later), Permission::Refused);
        assert_eq!(breaker.ask(true, later + PROBE_EVERY), Permission::Probe);
    }

    #[test]
    fn a_callback_without_signature_is_a_probe_only_if_there_is_no_other() {
        let now = Instant::now();
        let breaker = breaker();
        fail(&breaker, now);
        let due = now + PROBE_EVERY;
        assert_eq!(breaker.ask(false, due), Permission::Refused);
        assert_eq!(
            breaker.ask(false, due + UNSIGNED_PROBE_AFTER),
            Permission::Probe
        );
        assert_eq!(
            breaker.ask(false, due + UNSIGNED_PROBE_AFTER),
            Permission::Refused
        );
    }

    #[test]
    fn the_first_callback_after_a_quiet_time_waits_for_its_answer() {
        let now = Instant::now();
        let breaker = breaker();
        fail(&breaker, now);
        let later = now + PROBE_EVERY + WAIT_AFTER;
        assert_eq!(breaker.ask(true, later), Permission::AwaitedProbe);
        assert_eq!(breaker.ask(true, later), Permission::Refused);
    }

    #[test]
    fn a_backend_that_goes_up_and_down_is_logged_once() {
        let now = Instant::now();
        let lines = CapturedLog::default().lines(|| {
            let breaker = breaker();
            for second in 0..30 {
                let now = now + Duration::from_secs(second);
                fail(&breaker, now);
                breaker.succeeded(true, now);
            }
        });
        let codes: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(codes, ["upstream_down", "upstream_up"]);
    }
}
