//! The body of `/readyz`: whether a callback can be stored durably, and the state of the sinks.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;

use super::Observed;
use crate::event::UnixMillis;
use crate::forwarder::{Health, SinkHandle, at_risk};
use crate::upstream::BackendHealth;

#[derive(Debug, Serialize)]
pub(super) struct Readiness<'a> {
    pub(super) ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    spool: SpoolBody,
    sinks: BTreeMap<&'a str, SinkBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<StateBody>,
    /// By outcome.
    recalls_not_accepted_last_minute: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Serialize)]
struct SpoolBody {
    events: u64,
    used_bytes: u64,
    last_seq: u64,
    /// On this machine alone; none without a broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    at_risk_events: Option<u64>,
    unreadable: u64,
    lost: u64,
    /// What this start found to be damaged, and the path of the quarantined file.
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged: Option<String>,
    /// Quarantined files that nobody has removed yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    quarantined: Vec<String>,
}

/// Whether a sink or the backend is up.
#[derive(Debug, Serialize)]
pub(super) struct StateBody {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
}

#[derive(Debug, Serialize)]
struct SinkBody {
    #[serde(flatten)]
    state: StateBody,
    cursor: u64,
    lag: u64,
}

impl<'a> Readiness<'a> {
    pub(super) fn of(observed: &'a Observed, is_stopping: bool) -> Self {
        let Observed { spool, sinks, .. } = observed;
        let reason = observed.refusing(is_stopping);
        let status = spool.status();
        Self {
            ready: reason.is_none(),
            reason,
            spool: SpoolBody {
                events: status.rows(),
                used_bytes: status.used_bytes,
                last_seq: status.last.0,
                at_risk_events: at_risk(sinks, &status),
                unreadable: spool.unreadable(),
                lost: spool.lost(),
                damaged: observed.damaged(),
                quarantined: observed.quarantined(),
            },
            sinks: sinks
                .iter()
                .map(|sink| (sink.state.sink(), SinkBody::of(sink, status.last.0)))
                .collect(),
            upstream: StateBody::of_upstream(observed),
            recalls_not_accepted_last_minute: observed.unaccepted.last_minute(),
        }
    }
}

impl Observed {
    /// Why no callback can be stored now. Only a stop or the spool makes the relay unready, never a sink: see the
    /// module's documentation.
    pub(super) fn refusing(&self, is_stopping: bool) -> Option<String> {
        if is_stopping {
            return Some("relay is stopping".to_owned());
        }
        self.spool.status().refusing.map(|why| why.to_string())
    }

    /// What this start found to be damaged.
    pub(super) fn damaged(&self) -> Option<String> {
        let damaged = self.spool.report().quarantined.as_ref();
        damaged.map(ToString::to_string)
    }

    /// The paths of quarantined files that are still there.
    pub(super) fn quarantined(&self) -> Vec<String> {
        let paths = self.spool.quarantined();
        paths
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }
}

impl StateBody {
    const fn of(state: &'static str) -> Self {
        Self {
            state,
            reason: None,
            since: None,
        }
    }

    fn down(reason: String, since: SystemTime) -> Self {
        Self {
            state: "down",
            reason: Some(reason),
            since: UnixMillis::of(since).map(|since| since.to_string()),
        }
    }

    pub(super) fn of_sink(sink: &SinkHandle) -> Self {
        match sink.state.health() {
            Health::Starting => Self::of("starting"),
            Health::Up => Self::of("up"),
            Health::Down { reason, since } => Self::down(reason, since),
        }
    }

    /// None without a backend.
    pub(super) fn of_upstream(observed: &Observed) -> Option<Self> {
        let backend = observed.upstream.backend()?;
        Some(match backend.health() {
            BackendHealth::Up => Self::of("up"),
            BackendHealth::Down { reason, since } => Self::down(reason, since),
        })
    }
}

impl SinkBody {
    fn of(sink: &SinkHandle, last: u64) -> Self {
        let cursor = sink.cursor.position().0;
        Self {
            state: StateBody::of_sink(sink),
            cursor,
            lag: last.saturating_sub(cursor),
        }
    }
}
