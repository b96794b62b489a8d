//! The metrics of the spool, the sinks and the log, read at each scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::event::UnixMillis;
use crate::forwarder::{Health, SinkHandle, at_risk};
use crate::spool::{Spool, Status};
use crate::telemetry::dropped_lines;

/// Reads the metrics of the spool and the sinks. Blocks: it reads the age of events from the spool's file.
#[derive(Debug)]
pub struct CollectedMetrics {
    spool: Spool,
    sinks: Vec<SinkHandle>,
}

impl CollectedMetrics {
    pub(super) const fn new(spool: Spool, sinks: Vec<SinkHandle>) -> Self {
        Self { spool, sinks }
    }

    /// Name, help, unit and value of each gauge of the spool.
    fn spool_gauges(&self, status: &Status) -> Vec<SpoolGauge> {
        let mut gauges = vec![
            (
                "spool_events",
                "Sequence numbers from the oldest event kept to the newest; those of forwarded and lost events count.",
                None,
                status.rows(),
            ),
            (
                "spool_used",
                "Bytes of all used pages, those of forwarded events included.",
                Some(Unit::Bytes),
                status.used_bytes,
            ),
            (
                "spool_max",
                "The setting `spool.max_bytes`.",
                Some(Unit::Bytes),
                self.spool.max_bytes(),
            ),
            (
                "spool_available",
                "Estimate of the bytes left for events if all forwarded ones are purged.",
                Some(Unit::Bytes),
                status.available_bytes,
            ),
            (
                "spool_dead_letters",
                "Dead letters that no broker accepted, in the spool's table `dead_letters`.",
                None,
                status.dead_letters,
            ),
            (
                "spool_accepting",
                "1 while a callback can be stored durably, else 0.",
                None,
                u64::from(status.refusing.is_none()),
            ),
            (
                "spool_unreadable_events",
                "Events that could not be read back since the start, because their checksum is wrong.",
                None,
                self.spool.unreadable(),
            ),
            (
                "spool_lost_events",
                "Stored events that were lost because the file was damaged, over all starts.",
                None,
                self.spool.lost(),
            ),
        ];
        let free_disk = self.spool.free_disk_bytes().map(|bytes| {
            let help = "Free bytes of the spool's disk, `spool.reserve` included.";
            ("spool_free_disk", help, Some(Unit::Bytes), bytes)
        });
        gauges.extend(free_disk);
        let at_risk = at_risk(&self.sinks, status).map(|events| {
            let help = "Events on this machine alone, at most: no broker has confirmed them, or accepted them as dead letters.";
            ("at_risk_events", help, None, events)
        });
        gauges.extend(at_risk);
        gauges
    }

    /// Age in seconds of the oldest event that a sink has not confirmed, since it was appended; 0 if there is none.
    fn oldest_seconds(&self, sink: &SinkHandle) -> f64 {
        let appended_at = self
            .spool
            .appended_after(sink.cursor.position())
            .ok()
            .flatten();
        let Some(appended_at) = appended_at else {
            return 0.0;
        };
        let millis = UnixMillis::now()
            .as_millis()
            .saturating_sub(appended_at.as_millis());
        std::time::Duration::from_millis(millis.max(0).unsigned_abs()).as_secs_f64()
    }
}

#[expect(clippy::cast_precision_loss, reason = "metrics are doubles")]
pub(super) const fn float(number: u64) -> f64 {
    number as f64
}

type SpoolGauge = (&'static str, &'static str, Option<Unit>, u64);
type ReadGauge = fn(&CollectedMetrics, &SinkHandle, &Status) -> f64;
type ReadCounter = fn(&SinkHandle) -> u64;

impl Collector for CollectedMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // One status for all metrics of a scrape, so that they agree with each other.
        let status = self.spool.status();
        for (name, help, unit, value) in self.spool_gauges(&status) {
            let metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            ConstGauge::new(float(value)).encode(metric)?;
        }

        // Each metric of the sinks has one series per sink.
        let sinks: [(&str, &str, Option<Unit>, ReadGauge); 3] = [
            (
                "sink_up",
                "1 while the sink accepts events, else 0.",
                None,
                |_, sink, _| float(u64::from(sink.state.health() == Health::Up)),
            ),
            (
                "sink_lag_events",
                "Events that the broker has not confirmed.",
                None,
                |_, sink, status| float(sink.lag(status.last)),
            ),
            (
                "sink_oldest_unconfirmed",
                "Age of the oldest event that the broker has not confirmed; 0 if there is none.",
                Some(Unit::Seconds),
                |metrics, sink, _| metrics.oldest_seconds(sink),
            ),
        ];
        for (name, help, unit, read) in sinks {
            let mut metric =
                encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for sink in &self.sinks {
                let value = read(self, sink, &status);
                let labels = [("sink", sink.state.sink())];
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }

        let counters: [(&str, &str, ReadCounter); 2] = [
            (
                "sink_confirmed_events",
                "Events that the broker confirmed.",
                |sink| sink.state.metrics().confirmed,
            ),
            (
                "sink_refused_events",
                "Events that the broker refused for good.",
                |sink| sink.state.metrics().refused,
            ),
        ];
        for (name, help, read) in counters {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for sink in &self.sinks {
                let labels = [("sink", sink.state.sink())];
                ConstCounter::new(read(sink)).encode(metric.encode_family(&labels)?)?;
            }
        }

        let help = "Log lines that could not be written to standard error.";
        let metric =
            encoder.encode_descriptor("log_lines_dropped", help, None, MetricType::Counter)?;
        ConstCounter::new(dropped_lines()).encode(metric)
    }
}
