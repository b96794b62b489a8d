//! librdkafka's reports, collected by the polling thread and read by the session.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::ProducerContext;
use serde::Deserialize;
use tokio::sync::Notify;
use tracing::{debug, info};

use super::errors::{ErrorClass, classify, is_missing_right};
use super::partition_state::Partition;
use super::record_id::RecordId;
use crate::event::Seq;
use crate::sink::{DEAD_LETTER_TOPIC, Progress, Refusal, SessionError};

/// A fatal error fails everything in flight. This is how long to wait for the report of the record that caused it.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The reports of one producer.
#[derive(Debug, Default)]
pub(super) struct Reports {
    inbox: Mutex<Inbox>,
    changed: Notify,
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
    reason: String,
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

    /// Whether the brokers are unreachable, as far as is known.
    pub(super) fn is_stalled(&self) -> bool {
        self.inbox().stalled.now
    }

    /// librdkafka's last error about a broker, if any. It says more than that a request failed.
    pub(super) fn last_error(&self) -> Option<String> {
        Some(self.inbox().stalled.reason.clone()).filter(|reason| !reason.is_empty())
    }

    /// Reports that the brokers are reachable.
    pub(super) fn flowing(&self) {
        let mut inbox = self.inbox();
        if inbox.stalled.now {
            inbox.stalled = Stalled {
                now: false,
                reason: String::new(),
                unreported: true,
            };
            drop(inbox);
            self.changed.notify_one();
        }
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
        if !self.confirmed.is_empty() {
            return Some(Ok(ProducerReport::Confirmed(std::mem::take(
                &mut self.confirmed,
            ))));
        }
        if !self.refused.is_empty() {
            let refused = std::mem::take(&mut self.refused);
            return Some(Ok(ProducerReport::Other(Progress::Refused(refused))));
        }
        if self.stalled.unreported {
            self.stalled.unreported = false;
            return Some(Ok(ProducerReport::Other(if self.stalled.now {
                Progress::Stalled(self.stalled.reason.clone())
            } else {
                Progress::Resumed
            })));
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
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                if !inbox.stalled.now {
                    inbox.stalled.now = true;
                    inbox.stalled.unreported = true;
                    if inbox.stalled.reason.is_empty() {
                        reason.clone_into(&mut inbox.stalled.reason);
                    }
                }
            }
            // An error about one broker. It says more than `AllBrokersDown`, which follows.
            _ => reason.clone_into(&mut inbox.stalled.reason),
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
                if inbox.stalled.now {
                    inbox.stalled.now = false;
                    inbox.stalled.unreported = true;
                }
            }
            Err((error, _)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                inbox.failed(id, code, error.to_string());
            }
        }
        drop(inbox);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests;
