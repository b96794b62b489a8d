//! The load: wrk, with a script that gives each callback its own conversation and message.

use std::iter;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use recall_relay::vendor::BodyFormat;
use serde::Deserialize;

use super::cores::{Cores, Place};
use super::rig::{encode, recall_query};
use super::wait::wait;

/// Between two looks whether it has ended: little against a round.
const PAUSE: Duration = Duration::from_millis(2);

/// How much longer than its load wrk may run.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Kept alive; each has one callback under way.
    pub connections: u32,
    pub duration: Duration,
    pub conversations: u32,
    /// Recalled messages of a callback.
    pub messages: u32,
}

/// What the generator has seen.
#[derive(Debug, Clone, Copy)]
pub struct Answers {
    /// Answered OK.
    pub ok: u64,
    /// Answered with another status.
    pub refused: u64,
    /// Not answered: connections that failed, or took too long.
    pub unanswered: u64,
    pub took: Duration,
    pub p50: Duration,
    pub p99: Duration,
    pub p999: Duration,
    pub max: Duration,
    /// CPU time of the generator.
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
    /// Over 1000 conversations, one message each.
    pub const fn new(connections: u32, duration: Duration) -> Self {
        Self {
            connections,
            duration,
            conversations: 1000,
            messages: 1,
        }
    }

    /// The request that `callbacks.lua` varies. Only its first message is replaced; the others make it longer.
    fn template(&self, run: u64) -> String {
        const FIRST: u64 = 1_000_000_000;
        let others = (2..=u64::from(self.messages)).map(|number| 1_000_000 + number);
        let msg_id = |seq| match seq {
            FIRST => format!("144115213033478430-{run}-{seq}"),
            _ => format!("144115213033478435-1739361321-{}", 999_000_000 + seq),
        };
        let (seqs, at) = (iter::once(FIRST).chain(others), 1_670_574_414_123);
        let body = BodyFormat::default().group("@TGS#210000000", seqs, msg_id, at);
        let target = format!("/?{}", recall_query());
        String::from_utf8(encode("POST", &target, body.as_bytes())).expect("a text")
    }

    pub fn run(&self, to: SocketAddr, cores: &Cores) -> Answers {
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/performance/callbacks.lua");
        let threads = cores.of_generator().min(self.connections as usize);
        // It shares its cores with the brokers, and is not to measure how long it waited for them. Without the
        // right to go first it runs all the same.
        let mut command = Command::new("nice");
        command
            .args(["-n", "-10", "wrk"])
            .args(["--threads", &threads.to_string()])
            .args(["--connections", &self.connections.to_string()])
            .args(["--duration", &format!("{}s", self.duration.as_secs())])
            .args(["--timeout", "10s", "--script"])
            .arg(script)
            .args([&format!("http://{to}/"), "--", &self.template(run_number())])
            .arg(self.conversations.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let before = time_of_children();
        let child = cores.on(Place::Generator, || command.spawn());
        let output = finish(child.expect("wrk"), self.duration + TIMEOUT);
        let generator = time_of_children().saturating_sub(before);
        let text = String::from_utf8_lossy(&output);
        let last = text.trim_end().lines().last().unwrap_or_default();
        let line: Line = serde_json::from_str(last)
            .unwrap_or_else(|error| panic!("wrk ended without a result ({error}): {text}"));
        let time = Duration::from_micros;
        Answers {
            ok: line.requests.saturating_sub(line.refused),
            refused: line.refused,
            unanswered: line.unanswered,
            took: time(line.microseconds),
            p50: time(line.p50),
            p99: time(line.p99),
            p999: time(line.p999),
            max: time(line.max),
            generator,
        }
    }
}

/// What it has printed, little; killed where it does not end.
fn finish(mut child: Child, limit: Duration) -> Vec<u8> {
    let ended = wait(limit, PAUSE, || {
        child.try_wait().is_ok_and(|it| it.is_some())
    });
    if !ended {
        let _ = child.kill();
    }
    let output = child.wait_with_output().expect("wrk's output");
    assert!(ended, "wrk does not end");
    output.stdout
}

/// Ten digits that no load had before.
fn run_number() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1_000_000_000, |now| now.as_secs()) + COUNT.fetch_add(1, Ordering::Relaxed)
}

fn time_of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the children's usage");
    let microseconds =
        usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(microseconds.unsigned_abs())
}
