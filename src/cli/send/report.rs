//! What `send` prints at the end: for people, and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::latencies::{COARSE, Latencies, QUANTILES};
use super::summary::{OutcomeCounts, Summary};

/// How many lines the histogram has at most.
const MAX_HISTOGRAM_LINES: usize = 15;
/// How many columns the longest bar of the histogram has.
const BAR_COLUMNS: u64 = 40;

/// A finished run.
#[derive(Debug)]
pub struct SendReport<'a> {
    /// What was counted.
    pub summary: &'a Summary,
    /// How long the run took.
    pub elapsed: Duration,
    /// The first `MsgSeq` of every conversation.
    pub first_seq: u64,
}

impl SendReport<'_> {
    /// Callbacks sent per second.
    fn rate(&self) -> f64 {
        rate(self.summary.sent, self.elapsed)
    }

    /// The object that is documented in docs/reference/cli-json.md.
    pub fn json(&self) -> impl Serialize {
        let Summary {
            sent,
            unsent,
            outcomes,
            failures,
            backend_answers,
            latencies,
            recent: _,
        } = self.summary;
        JsonReport {
            sent: *sent,
            unsent: *unsent,
            failed: self.summary.failed(),
            outcomes: JsonOutcomes {
                ended: *outcomes,
                interrupted: self.summary.interrupted(),
            },
            failures: listed(failures, |reason, count| JsonFailure { reason, count }),
            backend_answers: listed(backend_answers, |answer, count| JsonAnswer {
                answer,
                count,
            }),
            elapsed_seconds: self.elapsed.as_secs_f64(),
            rate: self.rate(),
            latency: (latencies.count() > 0).then(|| JsonLatency::new(latencies)),
            first_seq: self.first_seq,
        }
    }
}

fn listed<'a, T>(counts: &'a BTreeMap<String, u64>, entry: impl Fn(&'a str, u64) -> T) -> Vec<T> {
    counts
        .iter()
        .map(|(what, count)| entry(what, *count))
        .collect()
}

/// How many per second.
pub fn rate(count: u64, elapsed: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 callbacks")]
    let count = count as f64;
    count / elapsed.as_secs_f64().max(f64::EPSILON)
}

#[derive(Debug, Serialize)]
struct JsonReport<'a> {
    sent: u64,
    unsent: u64,
    failed: u64,
    outcomes: JsonOutcomes,
    failures: Vec<JsonFailure<'a>>,
    backend_answers: Vec<JsonAnswer<'a>>,
    elapsed_seconds: f64,
    rate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<JsonLatency>,
    first_seq: u64,
}

#[derive(Debug, Serialize)]
struct JsonOutcomes {
    #[serde(flatten)]
    ended: OutcomeCounts,
    interrupted: u64,
}

#[derive(Debug, Serialize)]
struct JsonFailure<'a> {
    reason: &'a str,
    count: u64,
}

#[derive(Debug, Serialize)]
struct JsonAnswer<'a> {
    answer: &'a str,
    count: u64,
}

#[derive(Debug, Serialize)]
struct JsonLatency {
    count: u64,
    p50_seconds: f64,
    p90_seconds: f64,
    p99_seconds: f64,
    p999_seconds: f64,
    max_seconds: f64,
    histogram: Vec<JsonBucket>,
}

#[derive(Debug, Serialize)]
struct JsonBucket {
    up_to_seconds: f64,
    count: u64,
}

impl JsonLatency {
    fn new(latencies: &Latencies) -> Self {
        let [p50, p90, p99, p999] = QUANTILES.map(|(_, at)| seconds(latencies.micros_at(at)));
        let buckets = latencies.buckets(COARSE).into_iter();
        Self {
            count: latencies.count(),
            p50_seconds: p50,
            p90_seconds: p90,
            p99_seconds: p99,
            p999_seconds: p999,
            max_seconds: seconds(latencies.max_micros()),
            histogram: buckets
                .map(|bucket| JsonBucket {
                    up_to_seconds: seconds(bucket.up_to_micros),
                    count: bucket.count,
                })
                .collect(),
        }
    }
}

fn seconds(micros: u64) -> f64 {
    millis(micros) / 1e3
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 microseconds")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}

/// The report for people.
impl fmt::Display for SendReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary {
            sent,
            unsent,
            outcomes,
            failures,
            backend_answers,
            latencies,
            recent: _,
        } = self.summary;
        writeln!(f, "sent      {sent}")?;
        if *unsent > 0 {
            writeln!(
                f,
                "unsent    {unsent}  due, but an earlier answer came too late"
            )?;
        }
        writeln!(f, "OK        {}", outcomes.ok)?;
        for (what, count) in backend_answers {
            writeln!(f, "  {count:>7}  {what}")?;
        }
        writeln!(f, "failed    {}", self.summary.failed())?;
        for (what, count) in failures {
            writeln!(f, "  {count:>7}  {what}")?;
        }
        let interrupted = self.summary.interrupted();
        if interrupted > 0 {
            writeln!(f, "  {interrupted:>7}  interrupted before the answer")?;
        }
        writeln!(f, "elapsed   {:.3}s", self.elapsed.as_secs_f64())?;
        writeln!(f, "rate      {:.1}/s", self.rate())?;
        writeln!(f, "MsgSeq    from {}", self.first_seq)?;
        write!(f, "latency  ")?;
        if latencies.count() == 0 {
            return write!(f, " no answers");
        }
        for (name, quantile) in QUANTILES {
            write!(f, " {name} {}  ", Millis(latencies.micros_at(quantile)))?;
        }
        write!(f, " max {}", Millis(latencies.max_micros()))?;
        if latencies.count() > 1 {
            write_histogram(f, latencies)?;
        }
        Ok(())
    }
}

/// A line for each bucket: its bound, the number of latencies in it, their share, and a bar.
fn write_histogram(f: &mut fmt::Formatter<'_>, latencies: &Latencies) -> fmt::Result {
    let buckets = latencies.at_most_buckets(MAX_HISTOGRAM_LINES);
    let most = buckets.iter().map(|bucket| bucket.count).max();
    let most = most.unwrap_or(1).max(1);
    for bucket in &buckets {
        let (bound, count) = (millis(bucket.up_to_micros), bucket.count);
        let share = rate(count * 100, Duration::from_secs(latencies.count()));
        write!(f, "\n  up to {bound:>7}ms  {count:>9}  {share:>5.1}%")?;
        // A bucket that is not empty has at least a thin bar.
        let columns = u128::from(count) * u128::from(BAR_COLUMNS) / u128::from(most);
        let columns = usize::try_from(columns).unwrap_or_default();
        let bar = match (count, columns) {
            (0, _) => String::new(),
            (_, 0) => "▏".to_owned(),
            (_, columns) => "█".repeat(columns),
        };
        if !bar.is_empty() {
            write!(f, "  {bar}")?;
        }
    }
    Ok(())
}

/// Microseconds, shown as milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Millis(pub u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}ms", self.0 / 1000, self.0 % 1000)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use serde_json::json;

    use super::super::connection::SendFailure;
    use super::super::summary::tests::{OK, answered};
    use super::super::summary::{RightAnswer, SendOutcome};
    use super::*;

    fn summary() -> Summary {
        let mut summary = Summary::new().unwrap();
        let full = r#"{"ActionStatus":"FAIL","ErrorInfo":"the spool is full","ErrorCode":1}"#;
        let refused = SendFailure::Connect(io::ErrorKind::ConnectionRefused.into());
        for (outcome, millis) in [
            (answered(200, OK), 1),
            (answered(200, OK), 2),
            (answered(503, full), 3),
            (SendOutcome::TimedOut, 2000),
            (SendOutcome::Failed(refused), 0),
        ] {
            summary.sent();
            summary.ended(&outcome, RightAnswer::Ok, Duration::from_millis(millis));
        }
        summary.sent();
        let rejected = answered(
            200,
            r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":10100}"#,
        );
        summary.sent();
        summary.ended(
            &rejected,
            RightAnswer::AnyOfBackend,
            Duration::from_millis(2),
        );
        summary.unsent = 9;
        summary
    }

    fn report(summary: &Summary) -> SendReport<'_> {
        SendReport {
            summary,
            elapsed: Duration::from_millis(2500),
            first_seq: 130,
        }
    }

    #[test]
    fn reports_every_kind_of_outcome() {
        let summary = summary();
        assert_eq!((summary.sent, summary.failed()), (7, 4));
        let bar = "█".repeat(40);
        let half = "█".repeat(20);
        assert_eq!(
            report(&summary).to_string(),
            format!(
                "sent      7\n\
                 unsent    9  due, but an earlier answer came too late\n\
                 OK        3\n        \
                 1  200 OK/10100\n\
                 failed    4\n        \
                 1  503 FAIL/1 the spool is full\n        \
                 1  cannot connect: connection refused\n        \
                 1  timed out\n        \
                 1  interrupted before the answer\n\
                 elapsed   2.500s\n\
                 rate      2.8/s\n\
                 MsgSeq    from 130\n\
                 latency   p50 2.000ms   p90 2000.895ms   p99 2000.895ms   p99.9 2000.895ms   max 2000.895ms\n  \
                   up to       1ms          1   20.0%  {half}\n  \
                   up to       2ms          2   40.0%  {bar}\n  \
                   up to       5ms          1   20.0%  {half}\n  \
                   up to      10ms          0    0.0%\n  \
                   up to      20ms          0    0.0%\n  \
                   up to      50ms          0    0.0%\n  \
                   up to     100ms          0    0.0%\n  \
                   up to     200ms          0    0.0%\n  \
                   up to     500ms          0    0.0%\n  \
                   up to    1000ms          0    0.0%\n  \
                   up to    2000ms          1   20.0%  {half}"
            )
        );
    }

    /// A change here breaks programs that read the output: docs/reference/cli-json.md promises this form.
    #[test]
    fn the_json_form_is_frozen() {
        let summary = summary();
        let json = serde_json::to_value(report(&summary).json()).unwrap();
        let empty = |up_to_seconds: f64| json!({"up_to_seconds": up_to_seconds, "count": 0});
        assert_eq!(
            json,
            json!({
                "sent": 7, "unsent": 9, "failed": 4,
                "outcomes": {"ok": 3, "not_ok": 1, "timed_out": 1, "connection_failed": 1, "interrupted": 1},
                "failures": [
                    {"reason": "503 FAIL/1 the spool is full", "count": 1},
                    {"reason": "cannot connect: connection refused", "count": 1},
                    {"reason": "timed out", "count": 1},
                ],
                "backend_answers": [{"answer": "200 OK/10100", "count": 1}],
                "elapsed_seconds": 2.5, "rate": 2.8,
                "latency": {
                    "count": 5,
                    "p50_seconds": 0.002, "p90_seconds": 2.000_895, "p99_seconds": 2.000_895,
                    "p999_seconds": 2.000_895,
                    "max_seconds": 2.000_895,
                    "histogram": [
                        {"up_to_seconds": 0.001, "count": 1}, {"up_to_seconds": 0.002, "count": 2},
                        {"up_to_seconds": 0.005, "count": 1}, empty(0.01), empty(0.02), empty(0.05),
                        empty(0.1), empty(0.2), empty(0.5), empty(1.0), {"up_to_seconds": 2.0, "count": 1},
                    ],
                },
                "first_seq": 130,
            })
        );
        let nothing = Summary::new().unwrap();
        let json = serde_json::to_value(report(&nothing).json()).unwrap();
        assert_eq!(json.get("latency"), None, "{json}");
    }

    #[test]
    fn the_histogram_has_at_most_15_lines_and_shows_single_answers() {
        let mut summary = Summary::new().unwrap();
        for number in 0..10_000_u64 {
            summary.sent();
            // From 0.1 ms to 100 s.
            let micros = if number == 0 {
                100_000_000
            } else {
                100 + number
            };
            summary.ended(
                &answered(200, OK),
                RightAnswer::Ok,
                Duration::from_micros(micros),
            );
        }
        let text = report(&summary).to_string();
        let (_, histogram) = text.split_once("\n  up to").unwrap();
        assert!((2..=15).contains(&histogram.lines().count()), "{text}");
        assert!(text.ends_with("100000ms          1    0.0%  ▏"), "{text}");
    }
}
