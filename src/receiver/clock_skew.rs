//! How far the vendor's clock is from the relay's, as a metric.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::SignedDuration;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// The skew of the last signed callback, in milliseconds.
#[derive(Debug, Clone)]
pub(super) struct ClockSkew(Arc<AtomicI64>);

/// There was no signed callback yet.
const NONE: i64 = i64::MIN;

impl Default for ClockSkew {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(NONE)))
    }
}

impl ClockSkew {
    pub(super) fn set(&self, skew: SignedDuration) {
        let millis = i64::try_from(skew.as_millis()).unwrap_or(i64::MAX);
        self.0.store(millis, Ordering::Relaxed);
    }
}

impl Collector for ClockSkew {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metric = encoder.encode_descriptor(
            "callback_clock_skew",
            "`RequestTime` of the last callback that a token has signed, minus the time of the relay's clock when it \
             arrived. `RequestTime` is in whole seconds. No value before such a callback; probes do not count.",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        match self.0.load(Ordering::Relaxed) {
            NONE => Ok(()),
            millis => {
                let skew = SignedDuration::from_millis(millis);
                ConstGauge::new(skew.as_secs_f64()).encode(metric)
            }
        }
    }
}
