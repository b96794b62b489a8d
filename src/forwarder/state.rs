//! The state of a sink: its changes are logged, and it is reported in health and metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, warn};

use crate::event::Seq;
use crate::spool::{Cursor, Spool};
use crate::telemetry::Reminder;

/// Whether a sink accepts events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Not connected yet.
    Starting,
    /// The sink accepts events.
    Up,
    /// The sink does not accept events; they stay in the spool.
    Down {
        /// The reason.
        reason: String,
        /// When this began.
        since: SystemTime,
    },
}

/// A forwarder's counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkMetrics {
    /// Events that the broker confirmed.
    pub confirmed: u64,
    /// Events that the broker will never accept.
    pub refused: u64,
}

/// A sink's state; clones share it.
#[derive(Debug, Clone)]
pub struct SinkState {
    sink: &'static str,
    condition: Arc<Mutex<Condition>>,
    confirmed: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
}

/// What waits for a sink.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backlog {
    /// The newest event.
    pub(super) last: Seq,
    /// The sink has confirmed every event up to this one.
    pub(super) confirmed: Seq,
    /// When the spool will be full; `None` if it is not filling.
    pub(super) spool_full_in: Option<Duration>,
}

impl Backlog {
    pub(super) fn of(spool: &Spool, cursor: &Cursor) -> Self {
        Self {
            last: spool.status().last,
            confirmed: cursor.position(),
            spool_full_in: spool.time_until_full(),
        }
    }

    const fn waiting(self) -> u64 {
        self.last.0.saturating_sub(self.confirmed.0)
    }
}

#[derive(Debug)]
enum Condition {
    Starting,
    Up(Option<CatchUp>),
    Down(Outage),
}

/// A sink that is up again, and has not confirmed yet what had waited for it.
#[derive(Debug)]
struct CatchUp {
    since: Instant,
    /// What was confirmed when the sink went down.
    from: Seq,
    until: Seq,
}

#[derive(Debug)]
struct Outage {
    since: SystemTime,
    /// What was confirmed when this began.
    confirmed: Seq,
    /// The last one reported.
    reason: String,
    reminder: Reminder,
    /// The relay does not try to reconnect.
    is_final: bool,
}

impl SinkState {
    /// The state of a sink that is not connected yet.
    #[must_use]
    pub fn new(sink: &'static str) -> Self {
        Self {
            sink,
            condition: Arc::new(Mutex::new(Condition::Starting)),
            confirmed: Arc::default(),
            refused: Arc::default(),
        }
    }

    /// The sink's name.
    #[must_use]
    pub const fn sink(&self) -> &'static str {
        self.sink
    }

    /// Whether the sink accepts events.
    #[must_use]
    pub fn health(&self) -> Health {
        match &*self.condition() {
            Condition::Starting => Health::Starting,
            Condition::Up(_) => Health::Up,
            Condition::Down(outage) => Health::Down {
                reason: outage.reason.clone(),
                since: outage.since,
            },
        }
    }

    /// The counters since the start.
    #[must_use]
    pub fn metrics(&self) -> SinkMetrics {
        SinkMetrics {
            confirmed: self.confirmed.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        self.condition
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn confirmed(&self, events: u64) {
        self.confirmed.fetch_add(events, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The sink accepts events.
    pub(super) fn up(&self, backlog: impl FnOnce() -> Backlog, now: Instant) {
        let mut condition = self.condition();
        let (down_seconds, from) = match &*condition {
            Condition::Up(_) => return,
            Condition::Starting => (None, None),
            Condition::Down(outage) => (
                Some(outage.reminder.lasted(now).as_secs()),
                Some(outage.confirmed),
            ),
        };
        let backlog = backlog();
        info!(
            code = "sink_up",
            sink = self.sink,
            down_seconds,
            waiting = backlog.waiting(),
            "sink is up: it accepts events"
        );
        *condition = Condition::Up(Some(CatchUp {
            since: now,
            from: from.unwrap_or(backlog.confirmed),
            until: backlog.last,
        }));
        drop(condition);
        self.reached(backlog.confirmed, now);
    }

    /// The sink has confirmed every event up to this one.
    pub(super) fn reached(&self, position: Seq, now: Instant) {
        if let Condition::Up(catch_up) = &mut *self.condition()
            && let Some(CatchUp { since, from, until }) =
                catch_up.take_if(|catch_up| position >= catch_up.until)
            && until > from
        {
            info!(
                code = "sink_caught_up",
                sink = self.sink,
                events = until.0 - from.0,
                seconds = now.saturating_duration_since(since).as_secs(),
                "sink has confirmed the events that waited for it"
            );
        }
    }

    /// The sink does not accept events, for this reason. If that is final, the relay does not try to reconnect.
    pub(super) fn down(&self, reason: &str, is_final: bool, backlog: Backlog, now: Instant) {
        let mut condition = self.condition();
        if !matches!(*condition, Condition::Down(_)) {
            *condition = Condition::Down(Outage {
                since: SystemTime::now(),
                confirmed: backlog.confirmed,
                reason: String::new(),
                reminder: Reminder::new(now),
                is_final,
            });
        }
        if let Condition::Down(outage) = &mut *condition {
            reason.clone_into(&mut outage.reason);
            outage.is_final = is_final;
            self.log_down(outage, || backlog, now);
        }
    }

    /// Logs again that the sink is down if it has lasted. To be called every second or so.
    pub(super) fn remind(&self, backlog: impl FnOnce() -> Backlog, now: Instant) {
        if let Condition::Down(outage) = &mut *self.condition() {
            self.log_down(outage, backlog, now);
        }
    }

    /// Logs that the sink is down if that is due.
    fn log_down(&self, outage: &mut Outage, backlog: impl FnOnce() -> Backlog, now: Instant) {
        let Some(lasted) = outage.reminder.due_for(&outage.reason, now) else {
            return;
        };
        let (sink, reason, backlog) = (self.sink, &outage.reason, backlog());
        let (seconds, waiting) = (lasted.as_secs(), backlog.waiting());
        let spool_full_in_seconds = backlog.spool_full_in.map(|left| left.as_secs());
        if outage.is_final {
            warn!(
                code = "sink_stopped",
                sink,
                reason,
                seconds,
                waiting,
                spool_full_in_seconds,
                "sink stops publishing until the relay is restarted; fix the cause, then restart the relay"
            );
        } else if lasted.is_zero() {
            warn!(
                code = "sink_down",
                sink,
                reason,
                waiting,
                "sink is down: its events stay in the spool, and the relay retries; fix the cause"
            );
        } else {
            warn!(
                code = "sink_still_down",
                sink,
                reason,
                seconds,
                waiting,
                spool_full_in_seconds,
                "sink is still down: its events stay in the spool, and the relay retries; fix the cause before the \
                 spool is full"
            );
        }
    }
}

#[cfg(test)]
mod tests;
