//! librdkafka's reports, collected by the polling thread and read by the session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::ProducerContext;
use serde::Deserialize;
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::errors::{ErrorClass, classify, is_missing_right, specificity};
use super::partition_state::Partition;
use super::reason::{MostSpecificReason, Specificity};
use super::record_id::RecordId;
use super::rights::{Rights, TopicRight};
use crate::event::Seq;
use crate::sink::{DEAD_LETTER_TOPIC, Progress, Refusal, SessionError};
use crate::telemetry::LoggedTexts;

/// A fatal error fails everything in flight. This is how long to wait for the report of the record that caused it.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The reports of one producer.
#[derive(Debug, Default)]
pub(super) struct Reports {
    inbox: Mutex<Inbox>,
    changed: Notify,
    pub(super) rights: Rights,
    /// The errors that librdkafka has logged in this session and in earlier ones.
    logged: Arc<Mutex<LoggedTexts>>,
}

/// A report for the session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ProducerReport {
    /// The cluster has confirmed these.
    Confirmed(Vec<(Partition, Seq)>),
    /// Anything else.
    Other(Progress),
}

#[derive(Debug, Default)]
struct Inbox {
    confirmed: Vec<(Partition, Seq)>,
    refused: Vec<(Seq, Refusal)>,
    stalled: Stalled,
    failure: Option<ProducerFailure>,
    /// The producer itself has failed: it accepts no more records.
    is_over: bool,
}

/// Whether the brokers are unreachable.
#[derive(Debug, Default)]
struct Stalled {
    now: bool,
    /// The most specific of librdkafka's errors. There may be one while other brokers work.
    reason: MostSpecificReason,
    unreported: bool,
}

#[derive(Debug)]
enum ProducerFailure {
    /// Something failed as a consequence of another failure.
    Consequence { reason: String, since: Instant },
    /// The cause.
    Cause(Cause),
}

#[derive(Debug)]
enum Cause {
    Refused(Refusal),
    Unavailable(String),
}

impl Reports {
    /// The reports of a producer with these rights.
    pub(super) fn new(rights: Rights, logged: Arc<Mutex<LoggedTexts>>) -> Self {
        Self {
            rights,
            logged,
            ..Self::default()
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a record unless something has failed, because no record may overtake a failed one. Returns none if it did
    /// not send.
    pub(super) fn unless_failed(
        &self,
        send: impl FnOnce() -> KafkaResult<()>,
    ) -> Option<KafkaResult<()>> {
        let inbox = self.inbox();
        let outcome = inbox.failure.is_none().then(send);
        drop(inbox);
        outcome
    }

    /// Reports that librdkafka did not accept a record into its queue, and never will.
    pub(super) fn refuse(&self, seq: Seq, refusal: Refusal) {
        self.inbox().refused.push((seq, refusal));
        self.changed.notify_one();
    }

    /// Whether the brokers are unreachable, as far as is known, for a reason that does not say what to repair.
    pub(super) fn is_stalled_without_cause(&self) -> bool {
        let stalled = &self.inbox().stalled;
        let recent = stalled.reason.recent(Instant::now());
        stalled.now && recent.is_none_or(|(specificity, _)| specificity < Specificity::Cause)
    }

    /// The most specific of librdkafka's recent errors, if there was one. It says more than that a request failed.
    pub(super) fn last_error(&self) -> Option<String> {
        let inbox = self.inbox();
        let recent = inbox.stalled.reason.recent(Instant::now());
        recent.map(|(_, reason)| reason.to_owned())
    }

    /// The error of a session in which a request to the cluster failed.
    pub(super) fn request_failed(
        &self,
        action: String,
        right: TopicRight,
        topic: &str,
        error: KafkaError,
    ) -> SessionError {
        let code = match error {
            KafkaError::AdminOp(code) => code,
            _ => error
                .rdkafka_error_code()
                .unwrap_or(RDKafkaErrorCode::Unknown),
        };
        if specificity(code) < Specificity::Cause
            && let Some(reason) = self.last_error()
        {
            return SessionError::Unavailable(format!("{action}: {reason}"), None);
        }
        SessionError::unavailable(self.rights.explain(code, right, topic, action), error)
    }

    /// Reports that the brokers are reachable.
    pub(super) fn flowing(&self) {
        self.inbox().flowing();
        self.changed.notify_one();
    }

    /// Whether the producer itself has failed, not only some of its records.
    pub(super) fn is_over(&self) -> bool {
        self.inbox().is_over
    }

    /// Waits for the next report.
    pub(super) async fn next(&self) -> Result<ProducerReport, SessionError> {
        loop {
            if let Some(report) = self.inbox().take() {
                return report;
            }
            self.changed.notified().await;
        }
    }

    /// Wakes the session if it waits for the cause of a failure.
    pub(super) fn tick(&self) {
        if matches!(
            self.inbox().failure,
            Some(ProducerFailure::Consequence { .. })
        ) {
            self.changed.notify_one();
        }
    }

    /// Reports a fatal error of the producer.
    pub(super) fn fatal(&self, reason: String) {
        self.inbox().fatal(reason);
        self.changed.notify_one();
    }
}

impl Inbox {
    fn take(&mut self) -> Option<Result<ProducerReport, SessionError>> {
        // Before the confirms that ended an outage, so that what they confirm counts as having waited.
        if self.stalled.unreported {
            self.stalled.unreported = false;
            return Some(Ok(ProducerReport::Other(if self.stalled.now {
                Progress::Stalled(self.stalled.reason.text().to_owned())
            } else {
                Progress::Resumed
            })));
        }
        if !self.confirmed.is_empty() {
            return Some(Ok(ProducerReport::Confirmed(std::mem::take(
                &mut self.confirmed,
            ))));
        }
        if !self.refused.is_empty() {
            let refused = std::mem::take(&mut self.refused);
            return Some(Ok(ProducerReport::Other(Progress::Refused(refused))));
        }
        match &self.failure {
            Some(ProducerFailure::Cause(Cause::Refused(refusal))) => {
                Some(Err(SessionError::Refused(refusal.clone())))
            }
            Some(ProducerFailure::Cause(Cause::Unavailable(reason))) => {
                Some(Err(SessionError::Unavailable(reason.clone(), None)))
            }
            Some(ProducerFailure::Consequence { reason, since })
                if since.elapsed() > CAUSE_TIMEOUT =>
            {
                Some(Err(SessionError::Unavailable(reason.clone(), None)))
            }
            Some(ProducerFailure::Consequence { .. }) | None => None,
        }
    }

    fn flowing(&mut self) {
        if self.stalled.now {
            self.stalled = Stalled {
                unreported: true,
                ..Stalled::default()
            };
        }
    }

    fn fatal(&mut self, reason: String) {
        self.is_over = true;
        self.consequence(reason);
    }

    fn consequence(&mut self, reason: String) {
        if self.failure.is_none() {
            self.failure = Some(ProducerFailure::Consequence {
                reason,
                since: Instant::now(),
            });
        }
    }

    fn failed(&mut self, id: RecordId, code: RDKafkaErrorCode, reason: String) {
        let cause = match classify(code) {
            ErrorClass::Unavailable if id.is_dead_letter() && is_missing_right(code) => {
                Cause::Refused(Refusal {
                    reason: DEAD_LETTER_TOPIC,
                    detail: reason,
                })
            }
            ErrorClass::Consequence => return self.consequence(reason),
            ErrorClass::Refused(word) => Cause::Refused(Refusal {
                reason: word,
                detail: reason,
            }),
            ErrorClass::Unavailable => Cause::Unavailable(reason),
        };
        if !matches!(self.failure, Some(ProducerFailure::Cause(_))) {
            self.failure = Some(ProducerFailure::Cause(cause));
        }
    }
}

/// The part of librdkafka's statistics that shows whether the producer still knows a broker.
#[derive(Deserialize)]
struct Statistics {
    brokers: BTreeMap<String, BrokerStatistics>,
}

#[derive(Deserialize)]
struct BrokerStatistics {
    source: String,
}

impl Statistics {
    /// In addition to the cluster's brokers, librdkafka lists some of its own: `internal` and `logical`.
    fn knows_brokers(&self) -> bool {
        let mut brokers = self.brokers.values();
        brokers.any(|broker| ["configured", "learned"].contains(&broker.source.as_str()))
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(target: "librdkafka", ?level, facility, "{message}");
        if level as i32 > RDKafkaLogLevel::Error as i32 {
            return;
        }
        // Messages begin with the name of librdkafka's thread.
        let error = message
            .strip_prefix("[thrd:")
            .and_then(|rest| rest.split_once("]: "))
            .map_or(message, |(_, error)| error);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_due(error, Instant::now()) {
            warn!(
                code = "client_error",
                sink = super::NAME,
                error,
                "client library reported an error, and will retry; fix the cause if the sink is down or this recurs"
            );
        }
    }

    /// A broker that is just restarting may report that the cluster has no brokers. The producer then forgets all
    /// brokers and sends no more requests (librdkafka issue 5301).
    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice::<Statistics>(statistics) {
            Ok(statistics) if statistics.knows_brokers() => {}
            Ok(_) => {
                let reason = "producer has forgotten all brokers (librdkafka issue 5301)";
                info!(
                    code = "producer_replaced",
                    reason,
                    "producer is replaced by a new one; events in flight may be published twice"
                );
                self.fatal(reason.to_owned());
            }
            Err(error) => debug!(%error, "could not parse librdkafka's statistics"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "librdkafka reported an error");
        let mut inbox = self.inbox();
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => inbox.fatal(reason.to_owned()),
            code => {
                let code = code.unwrap_or(RDKafkaErrorCode::Unknown);
                let stalled = &mut inbox.stalled;
                let reasons = &mut stalled.reason;
                let changed = reasons.update(specificity(code), reason, Instant::now());
                let begins = code == RDKafkaErrorCode::AllBrokersDown && !stalled.now;
                stalled.now |= begins;
                stalled.unreported |= begins || (changed && stalled.now);
            }
        }
        drop(inbox);
        self.changed.notify_one();
    }
}

impl ProducerContext for Reports {
    /// A [`RecordId`].
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let id = RecordId::from_opaque(opaque);
        let mut inbox = self.inbox();
        match result {
            Ok(message) => {
                let partition = Partition {
                    dead_letter: id.is_dead_letter(),
                    number: message.partition(),
                };
                inbox.confirmed.push((partition, id.seq()));
                inbox.flowing();
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                let (topic, text) = (message.topic(), error.to_string());
                let text = self.rights.explain(code, TopicRight::Write, topic, text);
                inbox.failed(id, code, text);
            }
        }
        drop(inbox);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests;
