//! The receiver's metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AnswerLabels {
    pub(super) command: &'static str,
    pub(super) outcome: &'static str,
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
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(super) callbacks: Family<AnswerLabels, Counter>,
    pub(super) answer_seconds: Histogram,
    pub(super) fields: Family<FieldLabels, Counter>,
    pub(super) signatures: Family<TokenLabels, Counter>,
    pub(super) bad_signatures: Family<CommandLabels, Counter>,
}

/// The vendor waits 2 s, so the buckets must resolve latencies close to that.
const ANSWER_SECONDS: [f64; 14] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0,
];

impl Metrics {
    /// Registers the metrics.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            callbacks: Family::default(),
            answer_seconds: Histogram::new(ANSWER_SECONDS),
            fields: Family::default(),
            signatures: Family::default(),
            bad_signatures: Family::default(),
        };
        registry.register(
            "callbacks",
            "Requests by command and outcome",
            metrics.callbacks.clone(),
        );
        registry.register_with_unit(
            "answer",
            "From a request's head to its answer",
            Unit::Seconds,
            metrics.answer_seconds.clone(),
        );
        registry.register(
            "callback_fields_absent",
            "Fields that were left out of events because they were missing or unusable",
            metrics.fields.clone(),
        );
        registry.register(
            "callback_signatures",
            "Requests by the token that signed them: its position in auth.tokens, counted from 1",
            metrics.signatures.clone(),
        );
        registry.register(
            "callback_bad_signatures",
            "Requests whose signature was missing, wrong or stale, by command",
            metrics.bad_signatures.clone(),
        );
        metrics
    }
}
