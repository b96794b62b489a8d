//! The upstream: every command that is not a recall is handed on to a backend, whatever that does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bounds;
mod breaker;
mod changes;
mod connections;
mod copies;
mod load;
#[path = "../rig/mod.rs"]
mod rig;
mod unchanged;
mod who_may;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use rcgen::ExtendedKeyUsagePurpose;
use recall_relay::vendor::{BodyFormat, CallbackKind};
use rig::{
    APP, Answer, Authority, Backend, Connection, Faults, Received, Relay, Reply, Setup, free_port,
    large_recall, padded_recall, poll, recall, recall_query, request, until,
};
use serde_json::Value;

const TOO_MANY: &str = "too many callbacks are under way (upstream.max_in_flight), \
                        or the memory for them is used up";

/// The vendor waits 2 s; this is what the relay may take, on a busy machine.
const VENDOR_WAITS: Duration = Duration::from_millis(1900);

/// Shorter than `upstream.timeout`: nothing has waited for the backend.
const AT_ONCE: Duration = Duration::from_millis(1400);

/// The answer of a backend that says what no other part of the test says.
const BACKENDS_ANSWER: &str = r#"{"ActionStatus":"OK","ErrorCode":0,"own":"x"}"#;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A relay's settings with this backend.
fn setup(backend: &Backend) -> Setup {
    Setup::new().set("RECALL_UPSTREAM__URL", &url("http", backend))
}

fn url(scheme: &str, backend: &Backend) -> String {
    format!("{scheme}://{}/im", backend.address())
}

/// The query of a command that is not a recall.
fn other_query() -> String {
    CallbackKind::Other.query(APP, None)
}

fn other_body(number: u64) -> String {
    BodyFormat::default().other("g", number)
}

/// Sends a command that is not a recall.
fn other(relay: &Relay) -> Answer {
    relay.post(&other_query(), other_body(1))
}

/// Sends a command that is not a recall, and asserts that the backend's answer came back.
#[track_caller]
fn assert_handed_on(relay: &Relay, backend: &Backend) {
    backend.reply(Reply::json(BACKENDS_ANSWER));
    let answer = other(relay);
    assert_eq!((answer.status, answer.text()), (200, BACKENDS_ANSWER));
}

#[track_caller]
fn assert_fails(answer: &Answer, status: u16, reason: &str) {
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(answer.status, status, "{body}");
    assert_eq!(body["ErrorCode"], 1, "{body}");
    let info = body["ErrorInfo"].as_str().unwrap();
    assert!(info.contains(reason), "{info}");
    assert!(answer.took < VENDOR_WAITS, "{:?}", answer.took);
}

/// Sends these bytes on a new connection; returns the answer.
fn send(to: SocketAddr, bytes: &[u8]) -> Answer {
    let mut connection = Connection::open(to).unwrap();
    connection.send(bytes).unwrap();
    connection.answer().unwrap()
}

/// How many callbacks of the command that the tests use had this outcome.
fn handed_on(relay: &Relay, outcome: &str) -> u64 {
    let command = CallbackKind::Other.command();
    let name =
        format!(r#"recall_upstream_requests_total{{command="{command}",outcome="{outcome}"}}"#);
    relay.metric(&name).parse().unwrap()
}

fn copies(relay: &Relay, outcome: &str) -> u64 {
    let name = format!(r#"recall_upstream_copies_total{{outcome="{outcome}"}}"#);
    relay.metric(&name).parse().unwrap()
}

fn buffered_bytes(relay: &Relay) -> u64 {
    relay.metric("recall_http_buffered_bytes").parse().unwrap()
}

#[track_caller]
fn until_nothing_is_buffered(relay: &Relay) {
    until("the memory to be free", || {
        (buffered_bytes(relay) == 0).then_some(())
    });
}

#[track_caller]
fn until_reloaded(relay: &Relay, count: usize) {
    until(&format!("reload {count}"), || {
        relay.log_entries("reloaded").into_iter().nth(count - 1)
    });
}
