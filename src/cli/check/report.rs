//! The report of `check`: one line for each thing that it has looked at.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::cli::output::{self, ATTENTION, CAUTION, FINE, styled};
use crate::telemetry::escape;

/// How long reading files, and asking for the state of a file system, may take.
pub(super) const DISK_TIMEOUT: Duration = Duration::from_secs(5);

/// How many lines of an area may wait until those of earlier areas are printed.
const WAITING_LINES: usize = 16;

/// The result of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CheckResult {
    Ok,
    Warning,
    Failed,
    /// It was not tried, and the text says why.
    Untried,
}

/// A line.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    area: &'static str,
    subject: String,
    pub(super) result: CheckResult,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<String>,
}

/// Takes the lines of an area.
#[derive(Debug, Clone)]
pub(super) struct Area {
    name: &'static str,
    lines: mpsc::Sender<Finding>,
}

impl Finding {
    /// For an area that has not ended in time.
    pub(super) fn not_ended(area: &'static str, limit: Duration) -> Self {
        Self {
            area,
            subject: "check".to_owned(),
            result: CheckResult::Failed,
            text: format!("did not end within {} s", limit.as_secs()),
            action: Some("see the lines above: what this area uses hangs or is slow".to_owned()),
        }
    }
}

impl Area {
    /// An area, and the receiver of its lines.
    pub(super) fn new(name: &'static str) -> (Self, mpsc::Receiver<Finding>) {
        let (lines, received) = mpsc::channel(WAITING_LINES);
        (Self { name, lines }, received)
    }

    /// It is in order.
    pub(super) async fn ok(&self, subject: &str, text: impl Into<String>) {
        self.add(subject, CheckResult::Ok, text.into(), None).await;
    }

    /// It works, but needs attention.
    pub(super) async fn warning(
        &self,
        subject: &str,
        text: impl Into<String>,
        action: impl Into<String>,
    ) {
        let action = Some(action.into());
        self.add(subject, CheckResult::Warning, text.into(), action)
            .await;
    }

    /// It does not work.
    pub(super) async fn failed(
        &self,
        subject: &str,
        text: impl Into<String>,
        action: impl Into<String>,
    ) {
        let action = Some(action.into());
        self.add(subject, CheckResult::Failed, text.into(), action)
            .await;
    }

    /// It was not tried.
    pub(super) async fn untried(&self, subject: &str, text: impl Into<String>) {
        self.add(subject, CheckResult::Untried, text.into(), None)
            .await;
    }

    /// Runs code that blocks on a disk. None if it panics, or if it takes longer than `limit`; that is reported, with
    /// `step` for what it does.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        subject: &str,
        step: &str,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        match timeout(limit, spawn_blocking(work)).await {
            Ok(Ok(outcome)) => Some(outcome),
            Err(_) => {
                let text = format!("{step} did not end within {} s", limit.as_secs());
                let action = "see the kernel's log: the disk or the mount may hang; if it is a pipe, use a file";
                self.failed(subject, text, action).await;
                None
            }
            Ok(Err(error)) => {
                let text = format!("the check itself has failed: {error}");
                let action = "please report this as a bug of recall-relay";
                self.failed("check", text, action).await;
                None
            }
        }
    }

    async fn add(&self, subject: &str, result: CheckResult, text: String, action: Option<String>) {
        let finding = Finding {
            area: self.name,
            subject: subject.to_owned(),
            result,
            text,
            action: action.filter(|action| !action.is_empty()),
        };
        // Nobody prints any more if standard output is closed.
        let _ = self.lines.send(finding).await;
    }
}

/// Prints lines, and counts them.
#[derive(Debug)]
pub(super) struct Report {
    out: output::Stdout,
    json: bool,
    failed: usize,
    warnings: usize,
    untried: usize,
}

impl Report {
    /// A report for people, or with `json` for programs.
    pub(super) fn new(json: bool) -> Self {
        Self {
            out: output::stdout_for(json),
            json,
            failed: 0,
            warnings: 0,
            untried: 0,
        }
    }

    /// Prints a line.
    pub(super) fn print(&mut self, finding: &Finding) -> io::Result<()> {
        match finding.result {
            CheckResult::Ok => {}
            CheckResult::Warning => self.warnings += 1,
            CheckResult::Failed => self.failed += 1,
            CheckResult::Untried => self.untried += 1,
        }
        if self.json {
            output::print_json(&mut self.out, finding)?;
        } else {
            print_for_people(&mut self.out, finding)?;
        }
        self.out.flush()
    }

    /// Prints the counts for people. Returns whether no line has failed.
    pub(super) fn finish(mut self) -> io::Result<bool> {
        if !self.json {
            let Self {
                failed,
                warnings,
                untried,
                ..
            } = self;
            let total = format!("{failed} failed, {warnings} with a warning, {untried} untried");
            writeln!(self.out, "\n{total}")?;
        }
        Ok(self.failed == 0)
    }
}

fn print_for_people(out: &mut impl Write, finding: &Finding) -> io::Result<()> {
    let (word, style) = match finding.result {
        CheckResult::Ok => ("ok", Some(FINE)),
        CheckResult::Warning => ("warning", Some(CAUTION)),
        CheckResult::Failed => ("failed", Some(ATTENTION)),
        CheckResult::Untried => ("untried", None),
    };
    let word = format!("{word:<7}");
    let word = style.map_or_else(|| word.clone(), |style| styled(style, &word));
    let area = finding.area;
    let (subject, text) = (escape(&finding.subject), escape(&finding.text));
    writeln!(out, "{word}  {area:<13} {subject}: {text}")?;
    match &finding.action {
        Some(action) => writeln!(out, "{:<23}{}", "", escape(action)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use anstream::StripStream;

    use super::*;

    #[tokio::test]
    async fn a_check_that_panics_or_hangs_is_a_failure() {
        let (area, mut lines) = Area::new("spool");
        let second = Duration::from_secs(1);
        let panics = || panic!("it panics on purpose");
        let outcome: Option<()> = area.blocking("file", "reading", second, panics).await;
        assert_eq!(outcome, None);
        assert_eq!(lines.recv().await.unwrap().result, CheckResult::Failed);
        let (release, hung) = std::sync::mpsc::sync_channel::<()>(1);
        let hangs = move || hung.recv().is_ok();
        let outcome = area.blocking("file", "reading x", second, hangs).await;
        assert_eq!(outcome, None);
        let line = lines.recv().await.unwrap();
        assert_eq!(line.result, CheckResult::Failed);
        assert_eq!(line.text, "reading x did not end within 1 s");
        drop(release);
        let outcome = area.blocking("file", "reading", second, || 7).await;
        assert_eq!(outcome, Some(7));
    }

    #[test]
    fn a_line_for_people_has_the_action_below_it_and_nothing_that_controls_the_terminal() {
        let finding = Finding {
            area: "rabbitmq",
            subject: "a\u{1b}[2J".to_owned(),
            result: CheckResult::Failed,
            text: "refused\nok".to_owned(),
            action: Some("start it".to_owned()),
        };
        let mut plain = StripStream::new(Vec::new());
        print_for_people(&mut plain, &finding).unwrap();
        let expected = "failed   rabbitmq      a\\u001b[2J: refused\\u000aok\n                       start it\n";
        assert_eq!(String::from_utf8(plain.into_inner()).unwrap(), expected);
    }
}
