//! The relay as a separate process.

mod lines;
mod setup;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, MutexGuard};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

pub use self::lines::Lines;
pub use self::setup::Setup;
use super::vendor::{Answer, Connection, recall, recall_query, request};
use super::{Recall, poll, until};

/// The application that the callbacks belong to.
pub const APP: u64 = 1_400_000_001;

/// A running relay. Dropping it kills the process if it is still running.
pub struct Relay {
    _folder: Arc<TempDir>,
    child: Child,
    stdout: Lines,
    log: Lines,
    pub callbacks: SocketAddr,
    pub admin: SocketAddr,
}

impl Relay {
    pub fn post(&self, query: &str, body: impl AsRef<[u8]>) -> Answer {
        request(self.callbacks, "POST", &format!("/?{query}"), body.as_ref())
    }

    /// Sends recall number `number` of a conversation.
    pub fn recall(&self, conversation: &str, number: u64) -> Answer {
        self.post(&recall_query(), recall(conversation, number))
    }

    /// Sends these recalls of a conversation one by one, and asserts that each is answered OK.
    #[track_caller]
    pub fn recalls(&self, conversation: &str, numbers: RangeInclusive<u64>) -> Vec<Recall> {
        let send = |number| {
            let answer = self.recall(conversation, number);
            assert!(answer.is_ok(), "{answer:?}");
            Recall::new(conversation, number)
        };
        numbers.map(send).collect()
    }

    pub fn admin(&self, path: &str) -> Answer {
        request(self.admin, "GET", path, b"")
    }

    pub fn readiness(&self) -> Value {
        serde_json::from_slice(&self.admin("/readyz").body).unwrap()
    }

    /// Waits until a sink is in this state; returns its entry in `/readyz`.
    #[track_caller]
    pub fn until_sink(&self, sink: &str, state: &str) -> Value {
        until(&format!("{sink} to be {state}"), || {
            let body = self.readiness()["sinks"][sink].clone();
            (body["state"] == state).then_some(body)
        })
    }

    /// Waits until a sink is down, and asserts the reason; returns its entry in `/readyz`.
    #[track_caller]
    pub fn until_down(&self, sink: &str, why: &str) -> Value {
        let down = self.until_sink(sink, "down");
        let reason = down["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(why), "{down}");
        down
    }

    /// Waits until the reason why a sink is down contains a text.
    #[track_caller]
    pub fn until_reason(&self, sink: &str, text: &str) {
        until(&format!("the reason {text:?}"), || {
            self.reason(sink).contains(text).then_some(())
        });
    }

    /// The reason why a sink is down; empty if it is not.
    pub fn reason(&self, sink: &str) -> String {
        let body = &self.readiness()["sinks"][sink];
        body["reason"].as_str().unwrap_or_default().to_owned()
    }

    /// Asserts that the reason why a sink is down contains a text all the time for `lasting`.
    #[track_caller]
    pub fn assert_reason_stays(&self, sink: &str, text: &str, lasting: Duration) {
        let changed = poll(lasting, || !self.reason(sink).contains(text));
        assert!(!changed, "{}\n{}", self.readiness(), self.log());
    }

    /// Waits until a sink has confirmed everything.
    #[track_caller]
    pub fn until_drained(&self, sink: &str) {
        until(&format!("{sink} to be drained"), || {
            (self.readiness()["sinks"][sink]["lag"] == 0).then_some(())
        });
    }

    /// The value of a metric as it is printed; `name` includes the labels.
    #[track_caller]
    pub fn metric(&self, name: &str) -> String {
        let answer = self.admin("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(' ')?.to_owned());
        let value = answer.text().lines().find_map(value);
        value.unwrap_or_else(|| panic!("/metrics has no {name}"))
    }

    /// How many recalls of group messages `/metrics` counts with this outcome.
    #[track_caller]
    pub fn outcome_count(&self, outcome: &str) -> u64 {
        let command = "Group.CallbackAfterRecallMsg";
        let name = format!(r#"recall_callbacks_total{{command="{command}",outcome="{outcome}"}}"#);
        self.metric(&name).parse().unwrap()
    }

    /// How many events a sink's broker has refused permanently, according to `/metrics`.
    pub fn refused_events(&self, sink: &str) -> u64 {
        let name = format!(r#"recall_sink_refused_events_total{{sink="{sink}"}}"#);
        self.metric(&name).parse().unwrap()
    }

    /// All its events; waits until its stdout is closed.
    #[track_caller]
    pub fn events_after_exit(&self) -> Vec<Value> {
        self.stdout.until_closed();
        self.stdout.events()
    }

    /// Waits until there are at least `count` events on stdout; returns them.
    #[track_caller]
    pub fn events(&self, count: usize) -> Vec<Value> {
        until(&format!("{count} events"), || {
            let events = self.stdout.events();
            (events.len() >= count).then_some(events)
        })
    }

    /// Stops reading its stdout until the guard is dropped.
    pub fn pause_stdout_reader(&self) -> MutexGuard<'_, ()> {
        self.stdout.paused.lock().unwrap()
    }

    /// Stops reading its log until the guard is dropped.
    pub fn pause_log_reader(&self) -> MutexGuard<'_, ()> {
        self.log.paused.lock().unwrap()
    }

    /// The log entries with this code.
    pub fn log_entries(&self, code: &str) -> Vec<Value> {
        let entries = self
            .log
            .all()
            .into_iter()
            .filter_map(|line| serde_json::from_str(&line).ok());
        entries
            .filter(|entry: &Value| entry["code"] == code)
            .collect()
    }

    pub fn log_entry(&self, code: &str) -> Option<Value> {
        self.log_entries(code).into_iter().next()
    }

    /// The log entry of each time that a sink went down.
    pub fn down_entries(&self) -> Vec<Value> {
        self.log_entries("sink_down")
    }

    /// Its whole log; waits until its stderr is closed.
    #[track_caller]
    pub fn log_after_exit(&self) -> String {
        self.log.until_closed();
        self.log()
    }

    pub fn log(&self) -> String {
        self.log.all().join("\n")
    }

    pub fn signal(&self, signal: Signal) {
        kill(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            signal,
        )
        .unwrap();
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// The answer of `/readyz`; `None` if there is none.
    pub fn try_readiness(&self) -> Option<Value> {
        let mut connection = Connection::open(self.admin).ok()?;
        let answer = connection.request("GET", "/readyz", b"").ok()?;
        serde_json::from_slice(&answer.body).ok()
    }

    pub fn is_running(&mut self) -> bool {
        self.ended().is_none()
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("the relay to end", || child.try_wait().unwrap())
    }

    /// Stops it with SIGTERM, and asserts that it ends cleanly. Returns its events.
    #[track_caller]
    pub fn stop(self) -> Vec<Value> {
        self.signal(Signal::SIGTERM);
        self.wait_for_clean_exit()
    }

    /// Waits for the end of a stop that has begun, and asserts that it is clean. Returns its events.
    #[track_caller]
    pub fn wait_for_clean_exit(mut self) -> Vec<Value> {
        self.lines_after_clean_exit();
        self.events_after_exit()
    }

    /// Like [`Self::stop`]; returns its output as printed.
    #[track_caller]
    pub fn lines_until_stopped(mut self) -> Vec<String> {
        self.signal(Signal::SIGTERM);
        self.lines_after_clean_exit()
    }

    #[track_caller]
    fn lines_after_clean_exit(&mut self) -> Vec<String> {
        let status = self.wait();
        assert!(status.success(), "{status}\n{}", self.log());
        assert!(self.log_entry("spool_failed").is_none(), "{}", self.log());
        self.stdout.until_closed();
        self.stdout.all()
    }

    /// Kills it with SIGKILL; asserts that it has not ended by itself.
    #[track_caller]
    pub fn kill(mut self) {
        assert_eq!(self.ended(), None, "{}", self.log());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many of its threads have this name.
    pub fn threads(&self, name: &str) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.child.id()))
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
            .filter(|found| found.trim_end() == name)
            .count()
    }

    /// Resident memory in bytes: current and peak.
    pub fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let read = |name: &str| -> u64 {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
        };
        (read("VmRSS:"), read("VmHWM:"))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- log of the relay\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
