//! The outcomes of the callbacks: counted while they are sent, printed at the end.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use hyper::StatusCode;
use serde::Deserialize;

use super::connection::{Answer, SendFailure};

/// How many different failures are listed; the others are counted together.
const MAX_FAILURES_LISTED: usize = 20;
/// Longer reasons are truncated.
const MAX_REASON_CHARS: usize = 160;
const REST: &str = "others";

/// The outcome of one callback.
#[derive(Debug)]
pub enum SendOutcome {
    /// It was answered in time.
    Answered(Answer),
    /// There was no answer in time.
    TimedOut,
    /// The connection could not be opened, or it broke.
    Failed(SendFailure),
}

/// The answer that the vendor expects; all three fields are required.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct VendorAnswer {
    action_status: String,
    error_code: i64,
    error_info: String,
}

/// Counts of a run. Its size does not grow with the run.
#[derive(Debug)]
pub struct Summary {
    sent: u64,
    ok: u64,
    failures: BTreeMap<String, u64>,
    /// Microseconds.
    latencies: Histogram<u64>,
}

impl Summary {
    /// An empty summary.
    ///
    /// # Errors
    /// Fails if memory for the histogram cannot be allocated.
    pub fn new() -> anyhow::Result<Self> {
        let hour = 3_600_000_000;
        Ok(Self {
            sent: 0,
            ok: 0,
            failures: BTreeMap::new(),
            latencies: Histogram::new_with_bounds(1, hour, 3).context("making a histogram")?,
        })
    }

    /// Counts one more callback as sent.
    pub const fn sent(&mut self) {
        self.sent += 1;
    }

    /// Counts the outcome of a callback, `latency` after it was due.
    ///
    /// A timeout counts in the percentiles with the time that was waited; otherwise a relay that hangs would look
    /// fast. A failed connection does not count: it is not an answer, and often fails quickly.
    pub fn ended(&mut self, outcome: &SendOutcome, latency: Duration) {
        if !matches!(outcome, SendOutcome::Failed(_)) {
            let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            self.latencies.saturating_record(micros);
        }
        let Some(mut label) = failure(outcome) else {
            self.ok += 1;
            return;
        };
        if self.failures.len() >= MAX_FAILURES_LISTED && !self.failures.contains_key(&label) {
            REST.clone_into(&mut label);
        }
        *self.failures.entry(label).or_default() += 1;
    }

    /// The callbacks that were sent.
    pub const fn total(&self) -> u64 {
        self.sent
    }

    /// The callbacks that were sent and not answered with HTTP 200, OK and `ErrorCode` 0.
    pub const fn failed(&self) -> u64 {
        self.sent - self.ok
    }

    /// Formats the counts for people.
    pub const fn report(&self, elapsed: Duration) -> SendReport<'_> {
        SendReport {
            summary: self,
            elapsed,
        }
    }
}

/// What is wrong with the outcome, if anything is.
fn failure(outcome: &SendOutcome) -> Option<String> {
    let answer = match outcome {
        SendOutcome::Answered(answer) => answer,
        SendOutcome::TimedOut => return Some("timed out".to_owned()),
        SendOutcome::Failed(failure) => return Some(printable(&failure.to_string())),
    };
    let status = answer.status.as_u16();
    let Ok(verdict) = serde_json::from_slice::<VendorAnswer>(&answer.body) else {
        return Some(format!("{status}, not an answer the vendor reads"));
    };
    let VendorAnswer {
        action_status,
        error_code,
        error_info,
    } = verdict;
    if answer.status == StatusCode::OK && action_status == "OK" && error_code == 0 {
        return None;
    }
    Some(printable(&format!(
        "{status} {action_status}/{error_code} {error_info}"
    )))
}

/// The text as one short line without control characters: it is untrusted input.
fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().take(MAX_REASON_CHARS).map(clean).collect();
    text.trim_end().to_owned()
}

/// A [`Summary`] for people.
#[derive(Debug)]
pub struct SendReport<'a> {
    summary: &'a Summary,
    elapsed: Duration,
}

impl fmt::Display for SendReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary {
            sent,
            ok,
            failures,
            latencies,
        } = self.summary;
        writeln!(f, "sent      {sent}")?;
        writeln!(f, "OK        {ok}")?;
        writeln!(f, "failed    {}", sent - ok)?;
        for (what, count) in failures {
            writeln!(f, "  {count:>7}  {what}")?;
        }
        let unanswered = sent - ok - failures.values().sum::<u64>();
        if unanswered > 0 {
            writeln!(f, "  {unanswered:>7}  interrupted before the answer")?;
        }
        let seconds = self.elapsed.as_secs_f64();
        writeln!(f, "elapsed   {seconds:.3}s")?;
        #[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
        let rate = (*sent as f64) / seconds.max(f64::EPSILON);
        writeln!(f, "rate      {rate:.1}/s")?;
        write!(f, "latency  ")?;
        if latencies.is_empty() {
            return write!(f, " no answers");
        }
        for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
            write!(
                f,
                " {name} {}  ",
                Millis(latencies.value_at_quantile(quantile))
            )?;
        }
        write!(f, " max {}", Millis(latencies.max()))
    }
}

/// Microseconds, shown as milliseconds.
struct Millis(u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}ms", self.0 / 1000, self.0 % 1000)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use bytes::Bytes;

    use super::*;

    fn answered(status: u16, body: &'static str) -> SendOutcome {
        SendOutcome::Answered(Answer {
            status: StatusCode::from_u16(status).unwrap(),
            body: Bytes::from_static(body.as_bytes()),
        })
    }

    #[test]
    fn only_the_whole_ok_answer_is_ok() {
        let ok = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;
        assert_eq!(failure(&answered(200, ok)), None);
        for (status, body, expected) in [
            (201, ok, "201 OK/0"),
            (
                200,
                r#"{"ActionStatus":"FAIL","ErrorInfo":"","ErrorCode":0}"#,
                "200 FAIL/0",
            ),
            (
                200,
                r#"{"ActionStatus":"OK","ErrorCode":0}"#,
                "200, not an answer the vendor reads",
            ),
            (204, "", "204, not an answer the vendor reads"),
            (
                503,
                r#"{"ActionStatus":"FAIL","ErrorInfo":"the spool\n is full","ErrorCode":1}"#,
                "503 FAIL/1 the spool  is full",
            ),
        ] {
            assert_eq!(
                failure(&answered(status, body)).as_deref(),
                Some(expected),
                "{body}"
            );
        }
    }

    #[test]
    fn reports_every_kind_of_outcome() {
        let mut summary = Summary::new().unwrap();
        let full = r#"{"ActionStatus":"FAIL","ErrorInfo":"the spool is full","ErrorCode":1}"#;
        let ok = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;
        let refused = SendFailure::Connect(io::ErrorKind::ConnectionRefused.into());
        for (outcome, millis) in [
            (answered(200, ok), 1),
            (answered(200, ok), 2),
            (answered(503, full), 3),
            (SendOutcome::TimedOut, 2000),
            (SendOutcome::Failed(refused), 0),
        ] {
            summary.sent();
            summary.ended(&outcome, Duration::from_millis(millis));
        }
        summary.sent();
        assert_eq!((summary.total(), summary.failed()), (6, 4));
        assert_eq!(
            summary.report(Duration::from_millis(2500)).to_string(),
            "sent      6\n\
             OK        2\n\
             failed    4\n        \
             1  503 FAIL/1 the spool is full\n        \
             1  cannot connect: connection refused\n        \
             1  timed out\n        \
             1  interrupted before the answer\n\
             elapsed   2.500s\n\
             rate      2.4/s\n\
             latency   p50 2.000ms   p90 2000.895ms   p99 2000.895ms   p99.9 2000.895ms   max 2000.895ms"
        );
    }

    #[test]
    fn the_list_of_failures_is_bounded() {
        let mut summary = Summary::new().unwrap();
        for number in 0..1000 {
            let outcome = SendOutcome::Failed(SendFailure::Lost(format!("reason {number}").into()));
            summary.sent();
            summary.ended(&outcome, Duration::ZERO);
        }
        assert_eq!(summary.failures.len(), MAX_FAILURES_LISTED + 1);
        assert_eq!(summary.failures[REST], 980);
        assert_eq!(summary.failed(), 1000);
    }
}
