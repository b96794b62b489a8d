//! `/status`: what the relay does and did, as JSON. docs/reference/status.md describes it. It is answered from memory,
//! so a disk or a broker that hangs does not delay it.

mod buckets;
mod history;
mod settings;

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;

pub(super) use self::history::History;
use self::history::{HistoryBody, seconds_between};
pub use self::settings::{SettingInForce, SettingsInForce};
use super::Observed;
use super::readiness::StateBody;
use crate::event::UnixMillis;
use crate::forwarder::at_risk;
use crate::telemetry::{RecentProblem, dropped_lines, escape};

/// The version of the document. Fields may be added to a version; nothing else changes.
const VERSION: u32 = 1;

#[derive(Debug, Serialize)]
struct StatusBody {
    version: u32,
    at: UnixMillis,
    relay: RelayBody,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    callbacks: CallbacksBody,
    spool: SpoolStatusBody,
    sinks: Vec<SinkStatusBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<CertificateBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<StateBody>,
    problems: Vec<ProblemBody>,
    log_lines_dropped: u64,
    settings: Vec<SettingInForce>,
    history: HistoryBody,
}

#[derive(Debug, Serialize)]
struct RelayBody {
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<UnixMillis>,
    uptime_seconds: u64,
}

#[derive(Debug, Serialize)]
struct CallbacksBody {
    /// Since the start, by outcome.
    total: BTreeMap<&'static str, u64>,
    recalls_not_accepted_last_minute: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Serialize)]
struct SpoolStatusBody {
    events: u64,
    unconfirmed_events: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_risk_events: Option<u64>,
    last_seq: u64,
    used_bytes: u64,
    max_bytes: u64,
    capacity_bytes: u64,
    available_bytes: u64,
    percent: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    full_in_seconds: Option<u64>,
    dead_letters: u64,
    unreadable: u64,
    lost: u64,
    lost_at_start: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged: Option<String>,
    quarantined: Vec<String>,
}

#[derive(Debug, Serialize)]
struct SinkStatusBody {
    sink: &'static str,
    #[serde(flatten)]
    state: StateBody,
    cursor: u64,
    lag: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_unconfirmed_seconds: Option<f64>,
    confirmed: u64,
    refused: u64,
    /// Whether answers wait for its confirms; none if they never do.
    #[serde(skip_serializing_if = "Option::is_none")]
    answers_wait: Option<bool>,
}

#[derive(Debug, Serialize)]
struct CertificateBody {
    file: String,
    expires_at: UnixMillis,
}

#[derive(Debug, Serialize)]
struct ProblemBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    first_at: Option<UnixMillis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_at: Option<UnixMillis>,
    times: u64,
    level: &'static str,
    code: String,
    message: String,
    fields: BTreeMap<&'static str, String>,
}

/// The document, as one line of JSON that contains no control characters.
pub(super) fn json(
    observed: &Observed,
    history: &History,
    started: SystemTime,
    is_stopping: bool,
) -> String {
    let body = StatusBody::of(observed, history, started, is_stopping);
    escape(&serde_json::to_string(&body).unwrap_or_default())
}

impl StatusBody {
    fn of(observed: &Observed, history: &History, started: SystemTime, is_stopping: bool) -> Self {
        let reason = observed.refusing(is_stopping);
        let now = UnixMillis::now();
        let sinks: Vec<&'static str> = (observed.sinks.iter())
            .map(|sink| sink.state.sink())
            .collect();
        Self {
            version: VERSION,
            at: now,
            relay: RelayBody {
                version: env!("CARGO_PKG_VERSION"),
                started_at: UnixMillis::of(started),
                uptime_seconds: started.elapsed().unwrap_or_default().as_secs(),
            },
            ready: reason.is_none(),
            reason,
            callbacks: CallbacksBody {
                total: observed.answers.by_outcome(),
                recalls_not_accepted_last_minute: observed.unaccepted.last_minute(),
            },
            spool: SpoolStatusBody::of(observed),
            sinks: SinkStatusBody::all(observed, history, now),
            certificate: CertificateBody::of(observed),
            upstream: StateBody::of_upstream(observed),
            problems: (observed.problems.newest_first().into_iter())
                .map(ProblemBody::from)
                .collect(),
            log_lines_dropped: dropped_lines(),
            settings: observed.settings.all(),
            history: history.body(&sinks),
        }
    }
}

impl SpoolStatusBody {
    fn of(observed: &Observed) -> Self {
        let spool = &observed.spool;
        let status = spool.status();
        let lags = observed.sinks.iter().map(|sink| sink.lag(status.last));
        Self {
            events: status.rows(),
            unconfirmed_events: lags.max().unwrap_or_default(),
            at_risk_events: at_risk(&observed.sinks, &status),
            last_seq: status.last.0,
            used_bytes: status.used_bytes,
            max_bytes: spool.max_bytes(),
            capacity_bytes: status.capacity_bytes,
            available_bytes: status.available_bytes,
            percent: spool.percent_full(),
            full_in_seconds: spool.time_until_full().map(|time| time.as_secs()),
            dead_letters: status.dead_letters,
            unreadable: spool.unreadable(),
            lost: spool.lost(),
            lost_at_start: spool.lost_at_start(),
            damaged: observed.damaged(),
            quarantined: observed.quarantined(),
        }
    }
}

impl SinkStatusBody {
    fn all(observed: &Observed, history: &History, now: UnixMillis) -> Vec<Self> {
        let last = observed.spool.status().last;
        let sinks = observed.sinks.iter().enumerate();
        sinks
            .map(|(number, sink)| {
                let (lag, metrics) = (sink.lag(last), sink.state.metrics());
                let cursor = sink.cursor.position();
                // The cursor may have moved after `lag` was read.
                let oldest = history.oldest(number, cursor).filter(|_| lag > 0);
                Self {
                    sink: sink.state.sink(),
                    state: StateBody::of_sink(sink),
                    cursor: cursor.0,
                    lag,
                    oldest_unconfirmed_seconds: oldest
                        .map(|appended| seconds_between(appended, now)),
                    confirmed: metrics.confirmed,
                    refused: metrics.refused,
                    answers_wait: sink.confirms.as_ref().map(|it| it.is_waited_for()),
                }
            })
            .collect()
    }
}

impl CertificateBody {
    fn of(observed: &Observed) -> Option<Self> {
        let certificate = observed.handshakes.current()?;
        let expires = u64::try_from(certificate.expires.as_millisecond()).ok()?;
        Some(Self {
            file: certificate.path.display().to_string(),
            expires_at: UnixMillis::new(expires)?,
        })
    }
}

impl From<RecentProblem> for ProblemBody {
    fn from(problem: RecentProblem) -> Self {
        Self {
            first_at: UnixMillis::of(problem.first),
            last_at: UnixMillis::of(problem.last),
            times: problem.times,
            level: problem.level.as_str(),
            code: problem.code,
            message: problem.message,
            fields: problem.fields.into_iter().collect(),
        }
    }
}
