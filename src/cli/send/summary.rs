//! The outcomes of the callbacks, counted while they are sent.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use super::connection::{Answer, SendFailure};
use super::latencies::Latencies;

/// How many different reasons are listed; the others are counted together.
const MAX_LISTED: usize = 20;
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

/// Which answers are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RightAnswer {
    /// HTTP 200, OK and `ErrorCode` 0.
    Ok,
    /// Any answer of a backend that the vendor reads as an answer: HTTP 200, whatever the body says.
    AnyOfBackend,
}

/// The answer that the vendor expects; all three fields are required.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct VendorAnswer {
    action_status: String,
    error_code: i64,
    error_info: String,
}

/// How many callbacks had which outcome.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct OutcomeCounts {
    /// The answer was right.
    pub ok: u64,
    /// There was an answer, but it was not right.
    pub not_ok: u64,
    /// There was no answer in time.
    pub timed_out: u64,
    /// The connection could not be opened, or broke.
    pub connection_failed: u64,
}

impl OutcomeCounts {
    /// How many callbacks have ended without the right answer.
    pub const fn failed(self) -> u64 {
        self.not_ok + self.timed_out + self.connection_failed
    }
}

/// Counts of a run. Its size does not grow with the run.
#[derive(Debug)]
pub struct Summary {
    /// The callbacks that were sent.
    pub sent: u64,
    /// The callbacks that were due before the end of the run, but not sent, because an earlier answer came too late.
    pub unsent: u64,
    /// The callbacks that have ended, by outcome.
    pub outcomes: OutcomeCounts,
    /// What was wrong, and how often.
    pub failures: BTreeMap<String, u64>,
    /// Right answers that are not OK and `ErrorCode` 0, and how often.
    pub backend_answers: BTreeMap<String, u64>,
    /// Latencies of answers and time-outs.
    pub latencies: Latencies,
    /// The latencies since the progress line was drawn; not kept if there is none.
    pub recent: Option<Latencies>,
}

impl Summary {
    /// An empty summary.
    ///
    /// # Errors
    /// Fails if memory for the histogram cannot be allocated.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            sent: 0,
            unsent: 0,
            outcomes: OutcomeCounts::default(),
            failures: BTreeMap::new(),
            backend_answers: BTreeMap::new(),
            latencies: Latencies::new()?,
            recent: None,
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
    pub fn ended(&mut self, outcome: &SendOutcome, right: RightAnswer, latency: Duration) {
        if !matches!(outcome, SendOutcome::Failed(_)) {
            self.latencies.record(latency);
            if let Some(recent) = &mut self.recent {
                recent.record(latency);
            }
        }
        match outcome {
            SendOutcome::Answered(answer) => match judge(answer, right) {
                Judged::Ok => self.outcomes.ok += 1,
                Judged::Right(says) => {
                    self.outcomes.ok += 1;
                    count(&mut self.backend_answers, says);
                }
                Judged::Wrong(says) => {
                    self.outcomes.not_ok += 1;
                    count(&mut self.failures, says);
                }
            },
            SendOutcome::TimedOut => {
                self.outcomes.timed_out += 1;
                count(&mut self.failures, "timed out".to_owned());
            }
            SendOutcome::Failed(failure) => {
                self.outcomes.connection_failed += 1;
                count(&mut self.failures, printable(&failure.to_string()));
            }
        }
    }

    /// The callbacks that were sent and did not get the right answer.
    pub const fn failed(&self) -> u64 {
        self.sent - self.outcomes.ok
    }

    /// The callbacks whose answer was not waited for, because a person ended the run.
    pub const fn interrupted(&self) -> u64 {
        self.failed() - self.outcomes.failed()
    }
}

fn count(listed: &mut BTreeMap<String, u64>, mut what: String) {
    if listed.len() >= MAX_LISTED && !listed.contains_key(&what) {
        REST.clone_into(&mut what);
    }
    *listed.entry(what).or_default() += 1;
}

/// What an answer is, with what it says.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    /// HTTP 200, OK and `ErrorCode` 0.
    Ok,
    /// Another right answer.
    Right(String),
    Wrong(String),
}

/// What is wrong with an answer, if anything is: the vendor expects 200, OK and 0.
pub fn answer_problem(answer: &Answer) -> Option<String> {
    match judge(answer, RightAnswer::Ok) {
        Judged::Wrong(says) => Some(says),
        Judged::Ok | Judged::Right(_) => None,
    }
}

fn judge(answer: &Answer, right: RightAnswer) -> Judged {
    let is_200 = answer.status == StatusCode::OK;
    let status = answer.status.as_u16();
    let says = match serde_json::from_slice::<VendorAnswer>(&answer.body) {
        Ok(says) if is_200 && says.action_status == "OK" && says.error_code == 0 => {
            return Judged::Ok;
        }
        Ok(VendorAnswer {
            action_status,
            error_code,
            error_info,
        }) => printable(&format!(
            "{status} {action_status}/{error_code} {error_info}"
        )),
        Err(_) => format!("{status}, not an answer the vendor reads"),
    };
    if is_200 && right == RightAnswer::AnyOfBackend {
        Judged::Right(says)
    } else {
        Judged::Wrong(says)
    }
}

/// The text as one short line without control characters: it is untrusted input.
fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().take(MAX_REASON_CHARS).map(clean).collect();
    text.trim_end().to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;

    use super::*;

    pub(in super::super) const OK: &str = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

    fn answer(status: u16, body: &'static str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            location: None,
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    pub(in super::super) fn answered(status: u16, body: &'static str) -> SendOutcome {
        SendOutcome::Answered(answer(status, body))
    }

    #[test]
    fn only_the_whole_ok_answer_is_ok() {
        for right in [RightAnswer::Ok, RightAnswer::AnyOfBackend] {
            assert_eq!(judge(&answer(200, OK), right), Judged::Ok);
        }
        for (status, body, expected) in [
            (201, OK, "201 OK/0"),
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
            let says = expected.to_owned();
            assert_eq!(
                judge(&answer(status, body), RightAnswer::Ok),
                Judged::Wrong(says),
                "{body}"
            );
        }
    }

    #[test]
    fn a_backend_may_say_anything_with_200() {
        for (status, body, expected) in [
            (
                200,
                r#"{"ActionStatus":"OK","ErrorInfo":"rude","ErrorCode":10100}"#,
                Judged::Right("200 OK/10100 rude".to_owned()),
            ),
            (
                200,
                "own words",
                Judged::Right("200, not an answer the vendor reads".to_owned()),
            ),
            (
                504,
                r#"{"ActionStatus":"FAIL","ErrorInfo":"late","ErrorCode":1}"#,
                Judged::Wrong("504 FAIL/1 late".to_owned()),
            ),
        ] {
            assert_eq!(
                judge(&answer(status, body), RightAnswer::AnyOfBackend),
                expected
            );
        }
    }

    #[test]
    fn the_list_of_failures_is_bounded() {
        let mut summary = Summary::new().unwrap();
        for number in 0..1000 {
            let outcome = SendOutcome::Failed(SendFailure::Lost(format!("reason {number}").into()));
            summary.sent();
            summary.ended(&outcome, RightAnswer::Ok, Duration::ZERO);
        }
        assert_eq!(summary.failures.len(), MAX_LISTED + 1);
        assert_eq!(summary.failures[REST], 980);
        assert_eq!(summary.failed(), 1000);
    }
}
