//! The state of a sink: logged once per change, and reported in health and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::sink::SessionError;
use crate::telemetry::chain;

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
    health: Arc<watch::Sender<Health>>,
    confirmed: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
}

impl SinkState {
    /// The state of a sink that is not connected yet.
    #[must_use]
    pub fn new(sink: &'static str) -> Self {
        Self {
            sink,
            health: Arc::new(watch::Sender::new(Health::Starting)),
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
        self.health.borrow().clone()
    }

    /// The counters since the start.
    #[must_use]
    pub fn metrics(&self) -> SinkMetrics {
        SinkMetrics {
            confirmed: self.confirmed.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    pub(super) fn confirmed(&self, events: u64) {
        self.confirmed.fetch_add(events, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn up(&self) {
        self.health.send_if_modified(|health| {
            if *health == Health::Up {
                return false;
            }
            let down_seconds = match health {
                Health::Down { since, .. } => since.elapsed().ok().map(|down| down.as_secs()),
                Health::Starting | Health::Up => None,
            };
            info!(
                code = "sink_up",
                sink = self.sink,
                down_seconds,
                "sink is up: it accepts events"
            );
            *health = Health::Up;
            true
        });
    }

    pub(super) fn down(&self, error: &SessionError) {
        self.stalled(&chain(error));
    }

    pub(super) fn stalled(&self, reason: &str) {
        self.health.send_if_modified(|health| match health {
            Health::Down { reason: known, .. } => {
                let changed = known != reason;
                reason.clone_into(known);
                changed
            }
            Health::Starting | Health::Up => {
                warn!(
                    code = "sink_down",
                    sink = self.sink,
                    reason,
                    "sink is down: its events stay in the spool, and the relay retries; fix the cause"
                );
                *health = Health::Down {
                    reason: reason.to_owned(),
                    since: SystemTime::now(),
                };
                true
            }
        });
    }
}
