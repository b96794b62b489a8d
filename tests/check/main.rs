//! `recall-relay check`: it finds what it claims to find, and changes nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod callback_url;
mod certificates;
mod kafka;
mod rabbitmq;
#[path = "../rig/mod.rs"]
mod rig;
mod running;
mod settings;
mod spool;
mod upstream;

use std::fmt;
use std::path::Path;
use std::process::Output;
use std::thread;

use rig::Setup;
use serde_json::Value;

/// What the command has printed with `--json`.
struct Checked {
    code: i32,
    lines: Vec<Value>,
}

/// Runs the command.
#[track_caller]
fn check(setup: &Setup, arguments: &[&str]) -> Checked {
    let arguments = [&["check", "--json"], arguments].concat();
    Checked::of_output(&setup.command(&arguments).output().unwrap())
}

/// Runs the command with each of these settings, at the same time: each run measures the disk for a second.
#[track_caller]
fn check_all<const N: usize>(setups: [Setup; N]) -> [Checked; N] {
    thread::scope(|scope| {
        let running = setups.map(|setup| scope.spawn(move || check(&setup, &[])));
        running.map(|running| running.join().unwrap())
    })
}

/// Runs the command with each of these arguments, at the same time.
#[track_caller]
fn check_each<const N: usize>(setup: &Setup, arguments: [&[&str]; N]) -> [Checked; N] {
    thread::scope(|scope| {
        let running = arguments.map(|arguments| scope.spawn(move || check(setup, arguments)));
        running.map(|running| running.join().unwrap())
    })
}

impl Checked {
    #[track_caller]
    fn of_output(output: &Output) -> Self {
        let stdout = std::str::from_utf8(&output.stdout).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{stdout}");
        let lines = stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        Self {
            code: output.status.code().unwrap(),
            lines: lines.collect(),
        }
    }

    /// The lines of this area whose subject begins with `subject`.
    fn of(&self, area: &str, subject: &str) -> Vec<&Value> {
        let matches = |line: &&Value| {
            line["area"] == area && line["subject"].as_str().unwrap().starts_with(subject)
        };
        self.lines.iter().filter(matches).collect()
    }

    /// Asserts that a line of this area and subject has this result and contains this text. If it failed or is a
    /// warning, it says what to do.
    #[track_caller]
    fn assert(&self, area: &str, subject: &str, result: &str, text: &str) {
        let found = self
            .of(area, subject)
            .into_iter()
            .find(|line| line["result"] == result && line["text"].as_str().unwrap().contains(text));
        let found =
            found.unwrap_or_else(|| panic!("{area}, {subject}: no {result} {text:?} in\n{self}"));
        if ["failed", "warning"].contains(&result) {
            let advice = found["action"].as_str().unwrap_or_default();
            let says = advice.len() > 5 || text_says_what_to_do(found);
            assert!(says, "{found}");
        }
    }

    /// The same for a line that failed; also asserts that it is the only one that failed.
    #[track_caller]
    fn assert_only_failed(&self, area: &str, subject: &str, text: &str) {
        self.assert(area, subject, "failed", text);
        let is_sync = (area, subject) == ("spool", "sync");
        assert_eq!(self.failed(), usize::from(!is_sync), "{self}");
        assert_eq!(self.code, 1, "{self}");
    }

    /// Asserts that no line failed.
    #[track_caller]
    fn assert_no_failure(&self) {
        let is_slow = self.of("spool", "sync").iter().any(|line| is_failed(line));
        assert_eq!((self.failed(), self.code), (0, is_slow.into()), "{self}");
    }

    /// How many lines failed, without that of the syncs: how fast they are depends on this machine.
    fn failed(&self) -> usize {
        let is_sync = |line: &&Value| line["area"] == "spool" && line["subject"] == "sync";
        let failed = self.lines.iter().filter(|line| is_failed(line));
        failed.filter(|line| !is_sync(line)).count()
    }
}

fn is_failed(line: &Value) -> bool {
    line["result"] == "failed"
}

/// The spool's own errors say what to do after a semicolon.
fn text_says_what_to_do(line: &Value) -> bool {
    line["area"] == "spool" && line["text"].as_str().unwrap().contains("; ")
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "exit code {}", self.code)?;
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
