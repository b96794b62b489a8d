//! The usual metrics of the process, whose names have no prefix.

use std::fmt;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeVal;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Reads the metrics of this process from the system. What the system does not have is left out.
#[derive(Debug)]
pub struct ProcessMetrics {
    started: SystemTime,
}

impl ProcessMetrics {
    /// The metrics of a process that has started now.
    #[must_use]
    pub fn started_now() -> Self {
        Self {
            started: SystemTime::now(),
        }
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let seconds = seconds(usage.user_time()) + seconds(usage.system_time());
            let help = "User and system CPU time of the process";
            let unit = Some(&Unit::Seconds);
            let metric =
                encoder.encode_descriptor("process_cpu", help, unit, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(metric)?;
        }
        // Linux only.
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |name| Some(number(&status, name)? * 1024.0);
        let open_files = fs::read_dir("/proc/self/fd").ok().map(Iterator::count);
        let max_files = getrlimit(Resource::RLIMIT_NOFILE).ok();
        let started = self.started.duration_since(UNIX_EPOCH).ok();
        let gauges: [(&str, &str, Option<Unit>, Option<f64>); 6] = [
            (
                "process_start_time",
                "When the process started, in Unix time",
                Some(Unit::Seconds),
                started.map(|started| started.as_secs_f64()),
            ),
            (
                "process_resident_memory",
                "Resident memory of the process",
                Some(Unit::Bytes),
                kib("VmRSS"),
            ),
            (
                "process_virtual_memory",
                "Virtual memory of the process",
                Some(Unit::Bytes),
                kib("VmSize"),
            ),
            (
                "process_threads",
                "Threads of the process",
                None,
                number(&status, "Threads"),
            ),
            (
                "process_open_fds",
                "Open file descriptors",
                None,
                open_files.map(|count| super::collector::float(count as u64)),
            ),
            (
                "process_max_fds",
                "The limit of open file descriptors",
                None,
                max_files.map(|(soft, _)| super::collector::float(soft)),
            ),
        ];
        for (name, help, unit, value) in gauges {
            let Some(value) = value else { continue };
            let metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "metrics are doubles")]
fn seconds(time: TimeVal) -> f64 {
    time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
}

/// The number in a line of `/proc/self/status`.
fn number(status: &str, name: &str) -> Option<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}
