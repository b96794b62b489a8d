//! The load generator: wrk, with a script that makes every callback unique.

use std::iter;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use recall_relay::vendor::{BodyFormat, CallbackKind};
use serde::Deserialize;

use super::cores::{CoreSet, Cores};
use super::rig::{APP, encode};
use super::wait::wait;

/// How often to check whether wrk has ended: short compared with a round.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// How long wrk may run after the end of its load.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Keep-alive connections; each has one callback in flight.
    pub connections: u32,
    pub duration: Duration,
    pub conversations: u32,
    /// Recalled messages per callback.
    pub messages: u32,
    /// What the callbacks report: recalls of group messages, or another command with the same fields.
    pub kind: CallbackKind,
    /// The mean pause of a connection between two callbacks.
    pub pause: Duration,
}

/// The generator's results.
#[derive(Debug, Clone, Copy)]
pub struct Answers {
    /// Answered OK.
    pub ok: u64,
    /// Answered with another status.
    pub refused: u64,
    /// Not answered: the connection failed or the answer timed out.
    pub unanswered: u64,
    pub elapsed: Duration,
    pub p50: Duration,
    pub p99: Duration,
    pub p999: Duration,
    pub max: Duration,
    /// The generator's CPU time.
    pub generator: Duration,
}

/// The last line that `callbacks.lua` prints; times in microseconds.
#[derive(Deserialize)]
struct Line {
    requests: u64,
    microseconds: u64,
    p50: u64,
    p99: u64,
    p999: u64,
    max: u64,
    refused: u64,
    unanswered: u64,
}

impl Load {
    /// A load with 1000 conversations and one message per callback.
    pub const fn new(connections: u32, duration: Duration) -> Self {
        Self {
            connections,
            duration,
            conversations: 1000,
            messages: 1,
            kind: CallbackKind::Group,
            pause: Duration::ZERO,
        }
    }

    /// The request that `callbacks.lua` varies. It replaces only the first message; the others make the request longer.
    fn template(&self, run: u64) -> String {
        const FIRST: u64 = 1_000_000_000;
        let others = (2..=u64::from(self.messages)).map(|number| 1_000_000 + number);
        let msg_id = |seq| match seq {
            FIRST => format!("144115213033478430-{run}-{seq}"),
            _ => format!("144115213033478435-1739361321-{}", 999_000_000 + seq),
        };
        let (seqs, at) = (iter::once(FIRST).chain(others), 1_670_574_414_123);
        let body = BodyFormat::default().group("@TGS#210000000", seqs, msg_id, at);
        let body = body.replace(CallbackKind::Group.command(), self.kind.command());
        let target = format!("/?{}", self.kind.query(APP, None));
        String::from_utf8(encode("POST", &target, body.as_bytes()))
            .expect("the request is not UTF-8")
    }

    pub fn run(&self, to: SocketAddr, cores: &Cores) -> Answers {
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/performance/callbacks.lua");
        let threads = cores.generator_threads().min(self.connections as usize);
        // wrk shares its cores with the brokers, so it gets a higher priority: otherwise it would measure its own
        // waiting. Without the right to raise its priority, nice runs it anyway.
        let mut command = Command::new("nice");
        command
            .args(["-n", "-10", "wrk"])
            .args(["--threads", &threads.to_string()])
            .args(["--connections", &self.connections.to_string()])
            .args(["--duration", &format!("{}s", self.duration.as_secs())])
            .args(["--timeout", "10s", "--script"])
            .arg(script)
            .args([
                &format!("http://{to}/"),
                "--",
                &self.template(unique_run_number()),
            ])
            .arg(self.conversations.to_string())
            .arg(self.pause.as_millis().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // The children's CPU time includes wrk's only after wrk was waited for, so the difference is wrk's.
        let before = cpu_time_of_children();
        let child = cores.run_on(CoreSet::Generator, || command.spawn());
        let output = finish(child.expect("cannot start wrk"), self.duration + TIMEOUT);
        let generator = cpu_time_of_children().saturating_sub(before);
        // wrk prints its own statistics first; the last line is that of callbacks.lua.
        let text = String::from_utf8_lossy(&output);
        let last = text.trim_end().lines().last().unwrap_or_default();
        let line: Line = serde_json::from_str(last)
            .unwrap_or_else(|error| panic!("wrk ended without a result ({error}): {text}"));
        let time = Duration::from_micros;
        Answers {
            ok: line.requests.saturating_sub(line.refused),
            refused: line.refused,
            unanswered: line.unanswered,
            elapsed: time(line.microseconds),
            p50: time(line.p50),
            p99: time(line.p99),
            p999: time(line.p999),
            max: time(line.max),
            generator,
        }
    }
}

/// Waits for wrk and returns its output, which fits the pipe's buffer; kills it after `limit`.
fn finish(mut child: Child, limit: Duration) -> Vec<u8> {
    let ended = wait(limit, POLL_INTERVAL, || {
        child.try_wait().is_ok_and(|it| it.is_some())
    });
    if !ended {
        let _ = child.kill();
    }
    let output = child
        .wait_with_output()
        .expect("cannot read the output of wrk");
    assert!(ended, "wrk did not end within {limit:?}");
    output.stdout
}

/// A number of ten digits that no other run has, so that message ids are unique.
fn unique_run_number() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1_000_000_000, |now| now.as_secs()) + COUNT.fetch_add(1, Ordering::Relaxed)
}

fn cpu_time_of_children() -> Duration {
    let usage =
        getrusage(UsageWho::RUSAGE_CHILDREN).expect("cannot read the CPU time of the children");
    let microseconds =
        usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(microseconds.unsigned_abs())
}
