//! The upstream's metrics.

use std::fmt;
use std::sync::PoisonError;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{BackendHealth, Current, UpstreamError};
use crate::callback::known_commands;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    command: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CopyLabels {
    outcome: &'static str,
}

#[derive(Debug)]
pub(super) struct UpstreamMetrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Histogram,
    copies: Family<CopyLabels, Counter>,
}

/// Whether the backend answers, read at each scrape. Without a backend, the metric has no value.
#[derive(Debug)]
pub(super) struct Up(pub(super) Current);

impl Collector for Up {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1 while the backend answers.";
        let metric = encoder.encode_descriptor("upstream_up", help, None, MetricType::Gauge)?;
        let backend = self
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        backend.map_or(Ok(()), |backend| {
            ConstGauge::new(u32::from(backend.health() == BackendHealth::Up)).encode(metric)
        })
    }
}

/// The buckets resolve the default of `upstream.timeout`.
const SECONDS: [f64; 12] = [
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0,
];

/// The outcome of an exchange that succeeded.
const ANSWERED: &str = "answered";

/// The outcome of an exchange whose client disconnected before its end.
const ABANDONED: &str = "abandoned";

impl UpstreamMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            seconds: Histogram::new(SECONDS),
            copies: Family::default(),
        };
        registry.register(
            "upstream_requests",
            "Callbacks for the backend, by command and outcome",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "upstream",
            "How long exchanges with the backend take, up to the end of its answer or the failure",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register(
            "upstream_copies",
            "Copies of recalls for the backend, by outcome",
            metrics.copies.clone(),
        );
        metrics
    }

    /// Starts every counter at 0: otherwise Prometheus would not see its first increase.
    pub(super) fn init(&self) {
        for outcome in UpstreamError::NAMES.into_iter().chain([ANSWERED]) {
            let _ = self.copies.get_or_create(&CopyLabels { outcome });
        }
        for outcome in UpstreamError::NAMES
            .into_iter()
            .chain([ANSWERED, ABANDONED])
        {
            for command in known_commands() {
                let labels = RequestLabels { command, outcome };
                let _ = self.requests.get_or_create(&labels);
            }
        }
    }

    /// The outcome of an exchange in one word.
    pub(super) fn outcome<T>(answer: &Result<T, UpstreamError>) -> &'static str {
        answer.as_ref().err().map_or(ANSWERED, UpstreamError::name)
    }

    pub(super) fn copy(&self, outcome: &'static str) {
        self.copies.get_or_create(&CopyLabels { outcome }).inc();
    }

    pub(super) fn took(&self, seconds: f64) {
        self.seconds.observe(seconds);
    }
}

/// Counts a callback for the backend when it is dropped.
#[derive(Debug)]
pub(super) struct RequestCount<'a> {
    metrics: &'a UpstreamMetrics,
    command: &'static str,
    pub(super) outcome: &'static str,
}

impl<'a> RequestCount<'a> {
    pub(super) const fn new(metrics: &'a UpstreamMetrics, command: &'static str) -> Self {
        Self {
            metrics,
            command,
            outcome: ABANDONED,
        }
    }
}

impl Drop for RequestCount<'_> {
    fn drop(&mut self) {
        let labels = RequestLabels {
            command: self.command,
            outcome: self.outcome,
        };
        self.metrics.requests.get_or_create(&labels).inc();
    }
}
