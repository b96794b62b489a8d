//! The line that `send` shows on a terminal while it is sending.

use tokio::time::Instant;

use super::latencies::Latencies;
use super::report::{Millis, rate};
use super::summary::Summary;
use crate::cli::progress::{ProgressLine, ProgressRate};

/// Shows how many callbacks are sent, and rate and latencies since the previous update.
#[derive(Debug)]
pub struct LiveLine {
    line: ProgressLine,
    updated: Instant,
    sent: u64,
}

impl LiveLine {
    /// A line for this many callbacks, and `summary` prepared for it; `None` if stderr is not a terminal.
    ///
    /// # Errors
    /// Fails if memory for the latencies cannot be allocated.
    pub fn new(total: Option<u64>, summary: &mut Summary) -> anyhow::Result<Option<Self>> {
        let line = ProgressLine::new(total, ProgressRate::Reported);
        if line.is_hidden() {
            return Ok(None);
        }
        summary.recent = Some(Latencies::new()?);
        Ok(Some(Self {
            line,
            updated: Instant::now(),
            sent: 0,
        }))
    }

    /// Shows these counts, and the rate since the last update. Blocks while the terminal takes no output.
    pub fn update(&mut self, counts: LiveCounts) {
        let rate = rate(counts.sent - self.sent, self.updated.elapsed());
        self.line.set_rate(format!("{rate:.0}/s"));
        self.line.set_done(counts.sent);
        self.line.set_message(counts.message);
        self.updated = Instant::now();
        self.sent = counts.sent;
    }
}

/// What a line shows. It is taken while the counts are locked, and shown later: a terminal may block.
#[derive(Debug)]
pub struct LiveCounts {
    sent: u64,
    message: String,
}

impl LiveCounts {
    /// Takes the recent latencies out of `summary`.
    pub fn take(summary: &mut Summary) -> Self {
        let message = message(summary);
        if let Some(recent) = &mut summary.recent {
            recent.clear();
        }
        Self {
            sent: summary.sent,
            message,
        }
    }
}

/// The recent latencies, and how many callbacks have failed so far.
fn message(summary: &Summary) -> String {
    let failed = summary.outcomes.failed();
    match &summary.recent {
        Some(recent) if recent.count() > 0 => {
            let at = |quantile| Millis(recent.micros_at(quantile));
            format!("p50 {}  p99 {}  failed {failed}", at(0.5), at(0.99))
        }
        _ => format!("no answers  failed {failed}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::summary::tests::{OK, answered};
    use super::super::summary::{RightAnswer, SendOutcome};
    use super::*;

    #[test]
    fn shows_recent_latencies_and_all_failures() {
        let mut summary = Summary::new().unwrap();
        summary.recent = Some(Latencies::new().unwrap());
        assert_eq!(
            LiveCounts::take(&mut summary).message,
            "no answers  failed 0"
        );
        for (outcome, millis) in [(answered(200, OK), 1), (SendOutcome::TimedOut, 2)] {
            summary.sent();
            summary.ended(&outcome, RightAnswer::Ok, Duration::from_millis(millis));
        }
        let counts = LiveCounts::take(&mut summary);
        assert_eq!(counts.message, "p50 1.000ms  p99 2.000ms  failed 1");
        assert_eq!(counts.sent, 2);
        assert_eq!(
            LiveCounts::take(&mut summary).message,
            "no answers  failed 1"
        );
        assert_eq!(summary.latencies.count(), 2);
    }
}
