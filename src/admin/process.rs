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

use super::collector::float;

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
            let (name, help) = ("process_cpu", "User and system CPU time.");
            let unit = Some(&Unit::Seconds);
            let metric = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(metric)?;
        }
        // Only Linux has these files.
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bytes = |name| Some(number(&status, name)? * 1024.0);
        let started = self.started.duration_since(UNIX_EPOCH).ok();
        let started = started.map(|started| started.as_secs_f64());
        let threads = number(&status, "Threads");
        let (resident, reserved) = (bytes("VmRSS"), bytes("VmSize"));
        let open = fs::read_dir("/proc/self/fd").map(Iterator::count).ok();
        let open = open.map(|count| float(count as u64));
        let limit = getrlimit(Resource::RLIMIT_NOFILE).ok();
        let limit = limit.map(|(soft, _)| float(soft));
        let (second, byte) = (Some(Unit::Seconds), Some(Unit::Bytes));
        for (name, help, unit, value) in [
            ("start_time", "Start, in Unix time.", &second, started),
            ("resident_memory", "Resident memory.", &byte, resident),
            ("virtual_memory", "Virtual memory.", &byte, reserved),
            ("threads", "Threads.", &None, threads),
            ("open_fds", "Open file descriptors.", &None, open),
            ("max_fds", "Limit of open file descriptors.", &None, limit),
        ] {
            let Some(value) = value else { continue };
            let name = format!("process_{name}");
            let metric =
                encoder.encode_descriptor(&name, help, unit.as_ref(), MetricType::Gauge)?;
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
