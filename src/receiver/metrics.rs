//! The receiver's metrics.

use std::collections::BTreeMap;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::budget::UsedBytes;
use super::clock_skew::ClockSkew;
use super::durability::AnswerAfter;
use crate::callback::{IGNORABLE_FIELDS, NO_COMMAND, Recall, known_commands};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AnswerLabels {
    pub(super) command: &'static str,
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AfterLabels {
    after: &'static str,
}

impl AfterLabels {
    const DISK: Self = Self {
        after: AnswerAfter::Disk.name(),
    };
    const BROKER: Self = Self {
        after: AnswerAfter::Broker.name(),
    };
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FieldLabels {
    pub(super) field: &'static str,
    pub(super) problem: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CommandLabels {
    pub(super) command: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TokenLabels {
    pub(super) token: u32,
}

/// The receiver's metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) callbacks: Family<AnswerLabels, Counter>,
    answers: Family<AfterLabels, Counter>,
    answers_after_disk: Counter,
    pub(super) answer_seconds: Histogram,
    pub(super) fields: Family<FieldLabels, Counter>,
    pub(super) signatures: Family<TokenLabels, Counter>,
    pub(super) bad_signatures: Family<CommandLabels, Counter>,
    pub(super) clock_skew: ClockSkew,
}

/// What became of requests; clones share it.
#[derive(Debug, Clone)]
pub struct AnswerMetrics {
    callbacks: Family<AnswerLabels, Counter>,
    seconds: Histogram,
}

impl AnswerMetrics {
    /// How many requests have had each outcome since the start. Contains those that have not occurred yet.
    #[must_use]
    pub fn by_outcome(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for labels in answer_labels().chain(answer_labels_with_backend()) {
            if let Some(counter) = self.callbacks.get(&labels) {
                *counts.entry(labels.outcome).or_default() += counter.get();
            }
        }
        counts
    }

    /// How long answers took, in seconds, without callbacks for the backend.
    #[must_use]
    pub const fn seconds(&self) -> &Histogram {
        &self.seconds
    }
}

/// The vendor waits 2 s, so the buckets must resolve latencies close to that.
const ANSWER_SECONDS: [f64; 14] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0,
];

/// The outcomes that a request of any command can have.
const OUTCOMES: [&str; 6] = [
    "broken",
    "not_found",
    "too_large",
    "too_slow",
    "unavailable",
    "wrong_method",
];

/// The other outcomes of a request that names a recall.
const OUTCOMES_OF_RECALLS: [&str; 8] = [
    "abandoned",
    "accepted",
    "dropped",
    "no_length",
    "probe",
    "refused",
    "rejected",
    "repeated",
];

/// The other outcomes of a request that names another command, and of one that names none.
const OUTCOMES_OF_OTHERS: [&str; 1] = ["ignored"];
const OUTCOMES_WITHOUT_COMMAND: [&str; 2] = ["ignored", "no_length"];

/// The other outcomes of a request if there is a backend.
const OUTCOMES_WITH_BACKEND: [&str; 4] = ["handed_on", "no_length", "not_allowed", "not_handed_on"];

/// Every combination of labels that can occur without a backend.
fn answer_labels() -> impl Iterator<Item = AnswerLabels> {
    known_commands().flat_map(|command| {
        let outcomes = OUTCOMES.iter().chain(other_outcomes(command)).copied();
        outcomes.map(move |outcome| AnswerLabels { command, outcome })
    })
}

/// The outcomes besides [`OUTCOMES`] that a request of this command can have without a backend.
fn other_outcomes(command: &str) -> &'static [&'static str] {
    if Recall::named(command).is_some() {
        &OUTCOMES_OF_RECALLS
    } else if command == NO_COMMAND {
        &OUTCOMES_WITHOUT_COMMAND
    } else {
        &OUTCOMES_OF_OTHERS
    }
}

/// The combinations that can occur with a backend and are not among [`answer_labels`].
fn answer_labels_with_backend() -> impl Iterator<Item = AnswerLabels> {
    let labels = known_commands().flat_map(|command| {
        let outcomes = OUTCOMES_WITH_BACKEND.into_iter();
        outcomes.map(move |outcome| AnswerLabels { command, outcome })
    });
    labels.filter(|labels| !other_outcomes(labels.command).contains(&labels.outcome))
}

impl Metrics {
    /// What became of requests.
    pub(super) fn answers(&self) -> AnswerMetrics {
        AnswerMetrics {
            callbacks: self.callbacks.clone(),
            seconds: self.answer_seconds.clone(),
        }
    }

    /// Registers the metrics. Every counter whose labels are known starts at 0: otherwise Prometheus would not see its
    /// first increase.
    pub(super) fn register(registry: &mut Registry, tokens: u32, buffered: [UsedBytes; 2]) -> Self {
        let [buffered, unauthenticated] = buffered;
        let answers: Family<AfterLabels, Counter> = Family::default();
        let answers_after_disk = answers.get_or_create(&AfterLabels::DISK).clone();
        let metrics = Self {
            callbacks: Family::default(),
            answers_after_disk,
            answers,
            answer_seconds: Histogram::new(ANSWER_SECONDS),
            fields: Family::default(),
            signatures: Family::default(),
            bad_signatures: Family::default(),
            clock_skew: ClockSkew::default(),
        };
        for labels in answer_labels() {
            let _ = metrics.callbacks.get_or_create(&labels);
        }
        for field in IGNORABLE_FIELDS {
            for problem in ["missing", "unusable"] {
                let _ = metrics
                    .fields
                    .get_or_create(&FieldLabels { field, problem });
            }
        }
        metrics.init_token_counters(tokens);
        for command in known_commands() {
            let _ = metrics
                .bad_signatures
                .get_or_create(&CommandLabels { command });
        }
        registry.register(
            "callbacks",
            "Requests by command and outcome",
            metrics.callbacks.clone(),
        );
        registry.register(
            "answers",
            "Recalls that were answered OK when their event was on `disk`, or confirmed by every `broker`, too",
            metrics.answers.clone(),
        );
        registry.register_with_unit(
            "answer",
            "Time from a request's head to its answer, without callbacks for the backend",
            Unit::Seconds,
            metrics.answer_seconds.clone(),
        );
        registry.register(
            "callback_fields_absent",
            "Fields that events omit because the callback's field is `missing` or `unusable`",
            metrics.fields.clone(),
        );
        registry.register(
            "callback_signatures",
            "Callbacks by the token that signed them: its position in `auth.tokens`, counted from 1",
            metrics.signatures.clone(),
        );
        registry.register(
            "callback_bad_signatures",
            "Callbacks of any command with a missing, wrong or stale signature",
            metrics.bad_signatures.clone(),
        );
        registry.register_collector(Box::new(metrics.clock_skew.clone()));
        registry.register_with_unit(
            "http_buffered",
            "Bytes of `http.max_buffered_bytes` that callbacks hold",
            Unit::Bytes,
            buffered,
        );
        registry.register_with_unit(
            "http_unauthenticated",
            "Bytes of `http.max_unauthenticated_bytes` that requests hold",
            Unit::Bytes,
            unauthenticated,
        );
        metrics
    }

    /// Creates the counter of answers that wait for the brokers, at 0.
    pub(super) fn init_broker_counter(&self) {
        let _ = self.answers.get_or_create(&AfterLabels::BROKER);
    }

    /// Counts a recall that was answered OK.
    pub(super) fn answered_ok(&self, after: AnswerAfter) {
        match after {
            // Without a look-up, because this is the path of every recall by default.
            AnswerAfter::Disk => self.answers_after_disk.inc(),
            AnswerAfter::Broker => self.answers.get_or_create(&AfterLabels::BROKER).inc(),
        };
    }

    /// Creates the counters of what happens only with a backend, at 0.
    pub(super) fn init_backend_counters(&self) {
        for labels in answer_labels_with_backend() {
            let _ = self.callbacks.get_or_create(&labels);
        }
    }

    /// Creates the counters of tokens 1 to `tokens`, at 0.
    pub(super) fn init_token_counters(&self, tokens: u32) {
        for token in 1..=tokens {
            let _ = self.signatures.get_or_create(&TokenLabels { token });
        }
    }
}
