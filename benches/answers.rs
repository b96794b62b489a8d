//! How fast callbacks are answered from the disk, next to a bare hyper server that keeps nothing.
//!
//! `cargo bench --bench answers`: both are driven by `recall-relay send`, in turn, in the same run; what
//! is printed are medians, and ratios of medians. Events go to stdout, which nobody keeps.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking"
)]

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::task::JoinSet;

const RELAY: &str = env!("CARGO_BIN_EXE_recall-relay");
const ROUNDS: usize = 5;
const SECONDS: u64 = 4;
const BARE: &str = "127.0.0.1:18990";
const CALLBACKS: &str = "127.0.0.1:18991";
const ADMIN: &str = "127.0.0.1:18992";

fn main() {
    if std::env::args().nth(1).as_deref() == Some("bare") {
        bare(BARE.parse().unwrap());
        return;
    }
    let folder = TempDir::new().unwrap();
    let mut bare = Command::new(std::env::current_exe().unwrap())
        .arg("bare")
        .spawn()
        .unwrap();
    let mut relay = relay(&folder);
    wait_for(BARE);
    wait_for(CALLBACKS);
    let at_rest = memory(&relay);
    println!("connections  server  requests/s  p50       p99       of bare");
    for connections in [1, 8, 64, 256] {
        let mut rounds: Vec<(Round, Round)> = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push((send(BARE, connections), send(CALLBACKS, connections)));
        }
        let median = |read: fn(&(Round, Round)) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(read).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (bare_rate, relay_rate) = (median(|r| r.0.rate), median(|r| r.1.rate));
        let row = |server: &str, rate: f64, p50: f64, p99: f64| {
            let ratio = rate / bare_rate;
            println!(
                "{connections:11}  {server:6}  {rate:10.0}  {p50:6.3}ms  {p99:6.3}ms  {ratio:.2}"
            );
        };
        row("bare", bare_rate, median(|r| r.0.p50), median(|r| r.0.p99));
        row(
            "relay",
            relay_rate,
            median(|r| r.1.p50),
            median(|r| r.1.p99),
        );
    }
    println!(
        "resident memory of the relay: {:.1} MiB at rest, {:.1} MiB at its peak",
        at_rest.0,
        memory(&relay).1
    );
    for child in [&mut bare, &mut relay] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// What one round of load saw.
struct Round {
    rate: f64,
    p50: f64,
    p99: f64,
}

fn send(to: &str, connections: usize) -> Round {
    let output = Command::new(RELAY)
        .args([
            "send",
            "--sdk-app-id",
            "1400000001",
            "--url",
            &format!("http://{to}/"),
        ])
        .args([
            "--conversations",
            "1000",
            "--connections",
            &connections.to_string(),
        ])
        .args(["--duration", &format!("{SECONDS}s"), "--timeout", "10s"])
        .env_clear()
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let number = |after: &str| -> f64 {
        let (_, rest) = text
            .split_once(after)
            .unwrap_or_else(|| panic!("no {after:?} in {text}"));
        let rest = rest.trim_start();
        let end = rest
            .find(|char: char| !char.is_ascii_digit() && char != '.')
            .unwrap();
        rest[..end].parse().unwrap()
    };
    Round {
        rate: number("rate "),
        p50: number("p50 "),
        p99: number("p99 "),
    }
}

fn relay(folder: &TempDir) -> Child {
    Command::new(RELAY)
        .env_clear()
        .env("RECALL_SDK_APP_IDS", "1400000001")
        .env("RECALL_HTTP__LISTEN", CALLBACKS)
        .env("RECALL_ADMIN__LISTEN", ADMIN)
        .env("RECALL_SPOOL__PATH", folder.path().join("spool.db"))
        .env("RECALL_SPOOL__RETENTION", "0s")
        .env("RECALL_LOG__FILTER", "warn")
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn wait_for(address: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "nobody listens on {address}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Resident memory in MiB: now, and at its peak.
fn memory(child: &Child) -> (f64, f64) {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let read = |name: &str| -> f64 {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    };
    (read("VmRSS:"), read("VmHWM:"))
}

/// Reads the body and answers the vendor's OK: the ceiling.
#[tokio::main]
async fn bare(address: SocketAddr) {
    async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let _ = request.into_body().collect().await;
        let ok = br#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;
        Ok(Response::new(Full::new(Bytes::from_static(ok))))
    }
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let http = hyper::server::conn::http1::Builder::new();
        connections.spawn(http.serve_connection(TokioIo::new(stream), service_fn(answer)));
    }
}
