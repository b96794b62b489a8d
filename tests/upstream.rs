//! The upstream: every command that is not a recall is handed on to a backend, whatever that does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

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
                        or less than half of http.max_buffered_bytes is free";

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

// --- What the backend and the vendor get ---------------------------------------------------------------------

/// The header lines that every request to the backend has here.
fn expected_headers(backend: &Backend, length: usize) -> Vec<(String, String)> {
    let own = [
        ("host", backend.address().to_string()),
        ("content-length", length.to_string()),
        ("content-type", "application/json; charset=utf-8".to_owned()),
        ("cookie", "a=1".to_owned()),
        ("cookie", "b=2".to_owned()),
        ("user-agent", "vendor/1".to_owned()),
        (
            "x-forwarded-for",
            "198.51.100.1, 198.51.100.2, 127.0.0.1".to_owned(),
        ),
        ("x-forwarded-host", "im.example".to_owned()),
    ];
    let mut own: Vec<_> = own.map(|(name, value)| (name.to_owned(), value)).into();
    own.sort();
    own
}

#[test]
fn a_callback_reaches_the_backend_unchanged() {
    let backend = Backend::start();
    let own = format!("{}/callback?key=a%20b&flag", url("http", &backend));
    let relay = Setup::new().set("RECALL_UPSTREAM__URL", &own).start();
    let query = "b=%2F+c&&CallbackCommand=Group.CallbackBeforeSendMsg&a={x}&empty=&?y~'|";
    let binary: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let json = other_body(1).into_bytes();
    for (chunked, body) in [
        (false, &json),
        (false, &binary),
        (false, &Vec::new()),
        (true, &json),
        (true, &binary),
        (true, &Vec::new()),
    ] {
        let mut bytes = format!(
            "POST /?{query} HTTP/1.1\r\nHost: im.example\r\nContent-Type: application/json; charset=utf-8\r\n\
             cookie: a=1\r\nCookie: b=2\r\nUSER-AGENT: vendor/1\r\nX-Forwarded-For: 198.51.100.1\r\n\
             X-Forwarded-For: 198.51.100.2\r\nX-Forwarded-Host: forged\r\nConnection: keep-alive, X-Named\r\n\
             X-Named: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nUpgrade: h2c\r\nProxy-Connection: x\r\n"
        )
        .into_bytes();
        if chunked {
            bytes.extend(b"Transfer-Encoding: chunked\r\nTrailer: X-Trailer\r\n\r\n");
            for chunk in body.chunks(30_000) {
                bytes.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\nX-Trailer: 1\r\n\r\n");
        } else {
            bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            bytes.extend(body);
        }
        let answer = send(relay.callbacks, &bytes);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut received = backend.last();
        assert_eq!(received.method, "POST");
        let target = format!("/im/callback?key=a%20b&flag&{query}");
        assert_eq!(received.target, target);
        received.headers.sort();
        assert_eq!(received.headers, expected_headers(&backend, body.len()));
        assert!(received.body == *body, "{chunked}, {} bytes", body.len());
    }
    assert_eq!(backend.count(), 6);
    assert_eq!(handed_on(&relay, "answered"), 6);
    until_nothing_is_buffered(&relay);
    assert_eq!(relay.stop().len(), 0);
}

#[test]
fn a_trusted_proxy_names_the_host_and_the_source() {
    let backend = Backend::start();
    let relay = setup(&backend)
        .set("RECALL_AUTH__TRUSTED_PROXIES", "127.0.0.1")
        .set("RECALL_AUTH__ALLOWED_SOURCES", "203.0.113.7")
        .start();
    let head = format!(
        "POST /?{} HTTP/1.1\r\nHost: inner\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Host: outer\r\n\
         Content-Length: 2\r\n\r\n{{}}",
        other_query()
    );
    assert_eq!(send(relay.callbacks, head.as_bytes()).status, 200);
    let received = backend.last();
    assert_eq!(
        received.header("x-forwarded-for"),
        ["203.0.113.7, 127.0.0.1"]
    );
    assert_eq!(received.header("x-forwarded-host"), ["outer"]);
}

#[test]
fn the_answer_comes_back_unchanged() {
    let backend = Backend::start();
    let relay = setup(&backend).start();
    for code in [0, 1, 2, 10_100, 10_200] {
        let body = format!(r#"{{"ActionStatus":"FAIL","ErrorInfo":"no","ErrorCode":{code}}}"#);
        backend.reply(Reply::json(&body));
        let answer = other(&relay);
        assert_eq!((answer.status, answer.text()), (200, body.as_str()));
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    let binary: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let headers = "Content-Type: text/x-own\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: own\r\n\
                   Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nRetry-After: 7\r\nX-Empty: \r\n\
                   Connection: X-Named\r\nX-Named: 1\r\nKeep-Alive: timeout=9\r\n";
    for status in [200, 201, 400, 401, 404, 500, 503] {
        for body in [&b""[..], b"text", &binary] {
            backend.reply(Reply::new(status, headers, body));
            let answer = other(&relay);
            let length = body.len().to_string();
            let mut got = answer.headers;
            got.sort();
            let expected = [
                ("content-length", length.as_str()),
                ("content-type", "text/x-own"),
                ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
                ("retry-after", "7"),
                ("server", "own"),
                ("set-cookie", "a=1"),
                ("set-cookie", "b=2"),
                ("x-empty", ""),
            ];
            let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(got, expected, "{status}");
            assert_eq!(answer.status, status);
            assert!(answer.body == body, "{status}, {} bytes", body.len());
        }
    }
    // Without a body; preceded by another answer; of unknown length.
    for (bytes, status, body) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        ("HTTP/1.1 304 Not Modified\r\n\r\n", 304, ""),
        (
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
            200,
            "x",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nX: 1\r\n\r\n",
            200,
            "abc",
        ),
        ("HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, "until the end"),
    ] {
        backend.reply(Reply::raw(bytes).then_close());
        let answer = other(&relay);
        assert_eq!((answer.status, answer.text()), (status, body), "{bytes}");
        assert_eq!(answer.header("transfer-encoding"), None);
        assert_eq!(answer.header("connection"), None);
        backend.until_unconnected();
    }
    assert_eq!(handed_on(&relay, "answered"), 5 + 21 + 5);
    assert_eq!(relay.metric("recall_upstream_up"), "1");
    until_nothing_is_buffered(&relay);
}

#[test]
fn all_but_recalls_are_handed_on() {
    let backend = Backend::start();
    backend.reply(Reply::json(BACKENDS_ANSWER));
    let relay = setup(&backend).start();
    let recalls = [
        CallbackKind::Group,
        CallbackKind::C2c,
        CallbackKind::OfficialAccount,
    ];
    let mut expected = Vec::new();
    for (query, body) in [
        (CallbackKind::Probe.query(APP, None), ""),
        (CallbackKind::Probe.query(APP, None), "{}"),
        (String::new(), ""),
        (String::new(), "not json"),
        (String::new(), r#"{"CallbackCommand":"State.StateChange"}"#),
        ("SdkAppid=9&CallbackCommand=Own.Command".to_owned(), "[]"),
        ("CallbackCommand=C2C.CallbackBeforeSendMsg".to_owned(), "{}"),
    ] {
        let answer = relay.post(&query, body);
        assert_eq!(answer.text(), BACKENDS_ANSWER, "{query} {body}");
        let question_mark = if query.is_empty() { "" } else { "?" };
        expected.push((format!("/im{question_mark}{query}"), body.to_owned()));
    }
    let format = BodyFormat::default();
    let bodies = [
        recall("g", 1),
        format.c2c("a", "b", 1, 1_670_574_414_123),
        format.official_account("o", [1], 1_670_574_414_123),
    ];
    for (kind, body) in recalls.into_iter().zip(&bodies) {
        let answer = relay.post(&kind.query(APP, None), body);
        assert!(answer.is_ok(), "{answer:?}");
    }
    // A recall whose command stands only in its body.
    let answer = relay.post(&format!("SdkAppid={APP}"), recall("g", 2));
    assert!(answer.is_ok(), "{answer:?}");
    let pair = |received: Received| (received.target, String::from_utf8(received.body).unwrap());
    let received: Vec<_> = backend.received().into_iter().map(pair).collect();
    assert_eq!(received, expected);
    assert_eq!(relay.stop().len(), 4);
}

// --- Who may --------------------------------------------------------------------------------------------------

#[test]
fn what_is_refused_is_not_handed_on() {
    let backend = Backend::start();
    let setup = setup(&backend)
        .set("RECALL_HTTP__PATH", "/cb")
        .set("RECALL_HTTP__MAX_BODY_BYTES", "1KiB");
    let relay = setup.start();
    let post = |target: &str, body: &[u8]| request(relay.callbacks, "POST", target, body);
    let target = format!("/cb?{}", other_query());
    assert_fails(&post("/", b""), 404, "path");
    assert_fails(&post(&target.replace("/cb", "/cb/"), b""), 404, "path");
    let get = request(relay.callbacks, "GET", &target, b"");
    assert_fails(&get, 405, "method");
    assert_fails(&post(&target, &[b'x'; 1025]), 413, "body is larger");
    let old = format!("POST {target} HTTP/1.0\r\n\r\n{{}}");
    assert_fails(
        &send(relay.callbacks, old.as_bytes()),
        411,
        "Content-Length",
    );
    let sources = setup.with("RECALL_AUTH__ALLOWED_SOURCES", "203.0.113.7");
    relay.stop();

    let relay = sources.start();
    let probe = format!("/cb?{}", CallbackKind::Probe.query(APP, None));
    for target in [target.as_str(), probe.as_str(), "/cb"] {
        let answer = request(relay.callbacks, "POST", target, b"");
        assert_fails(
            &answer,
            403,
            "source address is not in auth.allowed_sources",
        );
    }
    assert_eq!(backend.count(), 0);
    relay.stop();

    let relay = setup.start();
    let old = format!("POST {target} HTTP/1.0\r\nContent-Length: 2\r\n\r\n{{}}");
    assert_eq!(send(relay.callbacks, old.as_bytes()).status, 200);
    assert_eq!(backend.last().body, b"{}");
    assert_eq!(backend.last().header("x-forwarded-host"), [""; 0]);
}

#[test]
fn a_callback_without_a_valid_signature_is_handed_on() {
    let backend = Backend::start();
    let relay = setup(&backend).set("RECALL_AUTH__TOKENS", "token").start();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    for signature in [
        None,
        Some(("wrong", now)),
        Some(("token", now - 999)),
        Some(("token", now)),
    ] {
        let query = CallbackKind::Other.query(APP, signature);
        assert_eq!(relay.post(&query, "{}").status, 200);
        assert_eq!(backend.last().target, format!("/im?{query}"));
    }
    // Of recalls, the relay decides, and an application need not be its own.
    assert_fails(&relay.recall("g", 1), 403, "Sign");
    let query = CallbackKind::Other.query(7, Some(("token", now)));
    assert_eq!(relay.post(&query, "{}").status, 200);
    assert_eq!(backend.count(), 5);
}

#[test]
fn unsigned_callbacks_wait_for_the_backend_in_a_quarter_of_the_places() {
    let backend = Backend::start();
    let relay = setup(&backend)
        .set("RECALL_AUTH__TOKENS", "token")
        .set("RECALL_UPSTREAM__MAX_IN_FLIGHT", "8")
        .set("RECALL_UPSTREAM__TIMEOUT", "1900ms")
        .start();
    backend.reply(Reply::hang());
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let unsigned = other_query();
    let signed = CallbackKind::Other.query(APP, Some(("token", now)));
    let post = |query| relay.post(query, "{}");
    thread::scope(|scope| {
        let mut waiting: Vec<_> = (0..2).map(|_| scope.spawn(|| post(&unsigned))).collect();
        backend.until_received(2);
        let refused = post(&unsigned);
        assert_fails(&refused, 502, TOO_MANY);
        assert!(refused.took < AT_ONCE, "{refused:?}");
        waiting.extend((0..6).map(|_| scope.spawn(|| post(&signed))));
        backend.until_received(8);
        let refused = post(&signed);
        assert_fails(&refused, 502, TOO_MANY);
        assert!(refused.took < AT_ONCE, "{refused:?}");
        backend.reply(Reply::json(BACKENDS_ANSWER));
        for waiting in waiting {
            assert_eq!(waiting.join().unwrap().text(), BACKENDS_ANSWER);
        }
    });
    assert_eq!(handed_on(&relay, "too_many"), 2);
    assert_eq!(handed_on(&relay, "answered"), 8);
    assert_eq!(backend.count(), 8);
    // Logged, but not as a fault of the backend.
    let logged = relay.log_entries("upstream_failed");
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert_eq!(logged[0]["reason"], TOO_MANY);
    assert_eq!(relay.log_entries("upstream_down"), Vec::<Value>::new());
    until_nothing_is_buffered(&relay);
}

// --- Bounds ---------------------------------------------------------------------------------------------------

const MIB: usize = 1 << 20;

/// What a broken backend does, and what the vendor gets.
fn failures() -> Vec<(Reply, u16, &'static str)> {
    let large = |length| Reply::new(200, "", &vec![b'x'; length]);
    let mut endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..=64 {
        endless.extend(b"4000\r\n");
        endless.extend([b'x'; 0x4000]);
        endless.extend(b"\r\n");
    }
    vec![
        (
            Reply::json("{}").late(Duration::from_secs(3)),
            504,
            "within upstream.timeout",
        ),
        (
            Reply::raw("HTTP/1.1 200 O").then_hang(),
            504,
            "within upstream.timeout",
        ),
        (
            Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab").then_hang(),
            504,
            "within upstream.timeout",
        ),
        (Reply::raw("").then_close(), 502, "no usable answer"),
        (
            Reply::raw("HTTP/1.1 200 O").then_close(),
            502,
            "no usable answer",
        ),
        (
            Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab").then_close(),
            502,
            "no usable answer",
        ),
        (
            Reply::raw("\u{0}rubbish\r\n\r\n").then_close(),
            502,
            "no usable answer",
        ),
        (
            Reply::raw("SSH-2.0-own\r\n").then_hang(),
            502,
            "no usable answer",
        ),
        (
            Reply::raw(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            )
            .then_hang(),
            502,
            "no usable answer",
        ),
        (large(MIB + 1), 502, "larger than 1 MiB"),
        (Reply::raw(endless).then_hang(), 502, "larger than 1 MiB"),
    ]
}

/// The answers of a relay whose backend is broken in every way, and away at last.
fn answers_of_failures(on_failure: &str, timeout: &str) -> Vec<(Answer, u16, &'static str)> {
    let mut backend = Backend::start();
    let relay = setup(&backend)
        .set("RECALL_UPSTREAM__ON_FAILURE", on_failure)
        .set("RECALL_UPSTREAM__TIMEOUT", timeout)
        .start();
    let mut answers = Vec::new();
    for (reply, status, reason) in failures() {
        backend.reply(reply);
        answers.push((other(&relay), status, reason));
        assert!(relay.recall("g", 1).is_ok());
        // Otherwise the breaker would open.
        assert_handed_on(&relay, &backend);
    }
    backend.stop();
    answers.push((other(&relay), 502, "cannot be reached"));
    until_nothing_is_buffered(&relay);
    assert_eq!(handed_on(&relay, "late"), 3);
    assert_eq!(handed_on(&relay, "bad_answer"), 8);
    assert_eq!(handed_on(&relay, "unreachable"), 1);
    let logged = relay.log_entries("upstream_failed");
    assert!(logged.len() > 3, "{}", relay.log());
    assert!(logged.iter().all(|entry| entry["level"] == "ERROR"));
    assert_eq!(relay.stop().len(), 1);
    answers
}

#[test]
fn a_broken_backend_is_answered_502_or_504_in_time() {
    for (answer, status, reason) in answers_of_failures("error", "1500ms") {
        assert_fails(&answer, status, reason);
        let waited = answer.took > Duration::from_millis(1400);
        assert_eq!(waited, status == 504, "{answer:?}");
    }
}

#[test]
fn a_broken_backend_allows_everything_if_so_configured() {
    for (answer, status, reason) in answers_of_failures("ok", "700ms") {
        assert!(answer.is_ok(), "{status}, {reason}: {answer:?}");
        assert!(answer.took < VENDOR_WAITS, "{answer:?}");
    }
}

#[test]
fn a_client_that_leaves_frees_its_place_and_its_memory() {
    let backend = Backend::start();
    let relay = setup(&backend)
        .set("RECALL_UPSTREAM__MAX_IN_FLIGHT", "1")
        .set("RECALL_UPSTREAM__TIMEOUT", "1900ms")
        .start();
    backend.reply(Reply::hang());
    let mut client = Connection::open(relay.callbacks).unwrap();
    let target = format!("/?{}", other_query());
    client.send(&rig::encode("POST", &target, b"{}")).unwrap();
    backend.until_received(1);
    assert!(buffered_bytes(&relay) > 0);
    drop(client);
    let command = CallbackKind::Other.command();
    let abandoned = format!(r#"recall_callbacks_total{{command="{command}",outcome="abandoned"}}"#);
    until("the client to be gone", || {
        (relay.metric(&abandoned) == "1").then_some(())
    });
    // Before its time is over.
    assert_eq!(handed_on(&relay, "late"), 0);
    assert_eq!(buffered_bytes(&relay), 0);
    assert_handed_on(&relay, &backend);
}

#[test]
fn the_largest_answer_comes_back() {
    let backend = Backend::start();
    let relay = setup(&backend).start();
    let body: Vec<u8> = (0..=255).cycle().take(MIB).collect();
    backend.reply(Reply::new(200, "", &body));
    assert!(other(&relay).body == body);
    until_nothing_is_buffered(&relay);
}

#[test]
fn answers_count_as_buffered_bytes_and_leave_half_of_them() {
    const PART: usize = 150 << 10;
    let backend = Backend::start();
    let relay = setup(&backend)
        .set("RECALL_HTTP__MAX_BUFFERED_BYTES", "400KiB")
        .set("RECALL_UPSTREAM__TIMEOUT", "1900ms")
        .start();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", PART + 1);
    let part = [head.as_bytes(), &vec![b'x'; PART]].concat();
    backend.reply(Reply::raw(part).then_hang());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| other(&relay));
        until("the most of an answer", || {
            (buffered_bytes(&relay) >= PART as u64).then_some(())
        });
        let refused = other(&relay);
        assert_fails(&refused, 502, TOO_MANY);
        assert!(refused.took < AT_ONCE, "{refused:?}");
        // A recall's event may need more than what a second answer did not get.
        assert!(relay.post(&recall_query(), large_recall("g", PART)).is_ok());
        // The backend closes the connection.
        backend.reply(Reply::json(BACKENDS_ANSWER));
        assert_fails(&waiting.join().unwrap(), 502, "no usable answer");
    });
    assert_eq!(handed_on(&relay, "too_many"), 1);
    until_nothing_is_buffered(&relay);
    // What is larger than the memory for all is still answered, if it is alone.
    let body = vec![b'x'; 5 * PART];
    backend.reply(Reply::new(200, "", &body));
    assert!(other(&relay).body == body);
}

// --- Connections ----------------------------------------------------------------------------------------------

#[test]
fn connections_are_kept_and_closed_ones_lose_nothing() {
    let backend = Backend::start();
    let relay = setup(&backend).start();
    for _ in 0..50 {
        assert_handed_on(&relay, &backend);
    }
    assert_eq!(backend.connections(), 1);
    for round in 0..10 {
        backend.reply(Reply::json("{}").then_close());
        assert_eq!(other(&relay).status, 200);
        backend.until_unconnected();
        assert_eq!(backend.connections(), 1 + round);
    }
    for _ in 0..10 {
        backend.reply(Reply::new(200, "Connection: close\r\n", b"{}").then_close());
        assert_eq!(other(&relay).status, 200);
    }
    assert_eq!(backend.count(), 70);
    assert_eq!(handed_on(&relay, "answered"), 70);
}

#[test]
fn a_backend_that_moves_to_another_address_is_found() {
    let port = free_port();
    let at = |last| Backend::start_at(SocketAddr::from(([127, 0, 0, last], port)));
    let faults = Faults::new();
    let setup = Setup::new()
        .set(
            "RECALL_UPSTREAM__URL",
            &format!("http://moving.test:{port}/"),
        )
        .with_faults(&faults);
    let relay = setup.start();
    assert_fails(&other(&relay), 502, "cannot be reached");
    let failed = until("the reason", || relay.log_entry("upstream_failed"));
    let reason = failed["reason"].as_str().unwrap();
    assert!(
        reason.contains("resolve") || reason.contains("lookup"),
        "{failed}"
    );

    faults.set_host_address(Ipv4Addr::LOCALHOST);
    let mut first = at(1);
    assert_handed_on(&relay, &first);
    assert_eq!(first.last().header("host"), [format!("moving.test:{port}")]);
    faults.set_host_address(Ipv4Addr::new(127, 0, 0, 2));
    let second = at(2);
    // A connection that works is kept.
    assert_handed_on(&relay, &first);
    first.stop();
    let answer = until("the backend at its new address", || {
        let answer = other(&relay);
        (answer.status == 200).then_some(answer)
    });
    assert!(answer.took < VENDOR_WAITS);
    assert_eq!((first.count(), second.count()), (2, 1));
}

// --- The breaker ----------------------------------------------------------------------------------------------

#[test]
fn a_dead_backend_costs_nobody_the_whole_timeout() {
    let mut backend = Backend::start();
    let relay = setup(&backend)
        .set("RECALL_UPSTREAM__TIMEOUT", "500ms")
        .start();
    assert_handed_on(&relay, &backend);
    assert_eq!(relay.readiness()["upstream"]["state"], "up");
    backend.reply(Reply::hang());
    for _ in 0..5 {
        assert_fails(&other(&relay), 504, "within upstream.timeout");
    }
    let down = relay.readiness()["upstream"].clone();
    assert_eq!(down["state"], "down");
    assert_eq!(
        down["reason"],
        "backend did not answer within upstream.timeout"
    );
    assert!(down["since"].is_string(), "{down}");
    assert_eq!(relay.admin("/readyz").status, 200);
    assert_eq!(relay.metric("recall_upstream_up"), "0");

    // Answers come at once, and a callback a second reaches the backend. One that takes as long as the timeout here, on
    // a busy machine, is not proof of anything; that many are.
    let (before, began) = (backend.count(), Instant::now());
    let mut waited = 0;
    let mut number = 0;
    while backend.count() < before + 3 {
        let answer = other(&relay);
        assert_fails(&answer, 502, "backend does not answer");
        waited += usize::from(answer.took >= Duration::from_millis(500));
        number += 1;
        assert!(relay.recall("g", number).is_ok());
        assert!(began.elapsed() < rig::TIMEOUT);
    }
    assert!(number > 20 && waited < 3, "{waited} of {number} waited");
    let probes: Vec<Instant> = backend
        .received()
        .iter()
        .skip(before)
        .map(|probe| probe.at)
        .collect();
    for pair in probes.windows(2) {
        let pause = pair[1] - pair[0];
        assert!(pause > Duration::from_millis(500), "{pause:?}");
    }
    let count = |code| relay.log_entries(code).len();
    assert_eq!((count("upstream_failed"), count("upstream_down")), (1, 1));
    let logged = relay.log_entry("upstream_down").unwrap();
    assert_eq!(logged["level"], "ERROR", "{logged}");
    assert_eq!(logged["url"], url("http", &backend));
    assert_eq!(logged["reason"], down["reason"]);

    // Another reason is logged, too.
    backend.stop();
    until("the other reason", || {
        assert_eq!(other(&relay).status, 502);
        let reason = relay.readiness()["upstream"]["reason"].clone();
        reason.as_str()?.contains("cannot be reached").then_some(())
    });
    until("the line about it", || {
        let logged = relay.log_entries("upstream_down").into_iter().last()?;
        let reason = logged["reason"].as_str().unwrap();
        reason.contains("cannot be reached").then_some(())
    });
    assert_eq!(count("upstream_up"), 0);

    backend.reply(Reply::json(BACKENDS_ANSWER));
    backend.resume();
    until("the backend to answer again", || {
        number += 1;
        assert!(relay.recall("g", number).is_ok());
        (other(&relay).text() == BACKENDS_ANSWER).then_some(())
    });
    for _ in 0..20 {
        assert_handed_on(&relay, &backend);
    }
    assert_eq!(relay.readiness()["upstream"]["state"], "up");
    assert_eq!(relay.metric("recall_upstream_up"), "1");
    let up = until("the line", || relay.log_entry("upstream_up"));
    assert_eq!(up["level"], "INFO", "{up}");
    assert!(up["failed"].as_u64().unwrap() > 20, "{up}");
    assert!(handed_on(&relay, "down") > 20);
    until_nothing_is_buffered(&relay);
    assert_eq!(relay.stop().len() as u64, number);
}

#[test]
fn who_cannot_sign_neither_opens_the_breaker_nor_probes() {
    let backend = Backend::start();
    let relay = setup(&backend)
        .set("RECALL_AUTH__TOKENS", "token")
        .set("RECALL_UPSTREAM__TIMEOUT", "300ms")
        .start();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let signed = CallbackKind::Other.query(APP, Some(("token", now)));
    let (unsigned, signed) = (|| other(&relay), || relay.post(&signed, "{}"));
    backend.reply_by(|request| {
        if request.target.contains("Sign=") {
            Reply::json(BACKENDS_ANSWER)
        } else {
            Reply::hang()
        }
    });
    for _ in 0..6 {
        assert_fails(&unsigned(), 504, "within upstream.timeout");
    }
    assert_eq!(relay.metric("recall_upstream_up"), "1");
    assert_eq!(signed().text(), BACKENDS_ANSWER);

    backend.reply(Reply::hang());
    for _ in 0..5 {
        assert_fails(&signed(), 504, "within upstream.timeout");
    }
    assert_eq!(relay.metric("recall_upstream_up"), "0");
    backend.reply(Reply::json(BACKENDS_ANSWER));
    let before = backend.count();
    let probed = poll(Duration::from_millis(1500), || {
        assert_fails(&unsigned(), 502, "backend does not answer");
        backend.count() > before
    });
    assert!(!probed);
    assert_fails(&signed(), 502, "backend does not answer");
    until("the probe's answer", || {
        (relay.metric("recall_upstream_up") == "1").then_some(())
    });
    assert_eq!(backend.count(), before + 1);
    assert_eq!(unsigned().text(), BACKENDS_ANSWER);
}

/// Regression: such a probe was reported neither as a success nor as a failure, and there was no other one until the next
/// start.
#[test]
fn a_probe_without_memory_for_its_answer_is_followed_by_others() {
    const BYTES: usize = 100 << 10;
    let mut backend = Backend::start();
    let relay = setup(&backend)
        .set("RECALL_HTTP__MAX_BODY_BYTES", "300KiB")
        .set("RECALL_HTTP__MAX_BUFFERED_BYTES", "300KiB")
        .start();
    backend.stop();
    for _ in 0..5 {
        assert_fails(&other(&relay), 502, "cannot be reached");
    }
    assert_eq!(relay.metric("recall_upstream_up"), "0");
    let mut slow = Connection::open(relay.callbacks).unwrap();
    let head = format!(
        "POST /?{} HTTP/1.1\r\nHost: r\r\nContent-Length: {}\r\n\r\n",
        other_query(),
        BYTES + 1
    );
    slow.send(&[head.as_bytes(), &vec![b' '; BYTES]].concat())
        .unwrap();
    until("the rest of a body", || {
        (buffered_bytes(&relay) >= BYTES as u64).then_some(())
    });
    backend.reply(Reply::new(200, "", &vec![b'x'; BYTES]));
    backend.resume();
    until("a probe", || {
        assert_eq!(other(&relay).status, 502);
        (backend.count() > 0).then_some(())
    });
    backend.reply(Reply::json(BACKENDS_ANSWER));
    until("the backend to be up", || {
        (other(&relay).text() == BACKENDS_ANSWER).then_some(())
    });
}

// --- Copies of recalls ----------------------------------------------------------------------------------------

fn copying(backend: &Backend) -> Setup {
    setup(backend).set("RECALL_UPSTREAM__COPY_RECALLS", "true")
}

#[test]
fn each_new_recall_is_copied_once_it_is_durable() {
    let backend = Backend::start();
    let faults = Faults::new();
    let relay = copying(&backend).with_faults(&faults).start();
    faults.hang_syncs();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| relay.recall("g", 1));
        until("the body", || (buffered_bytes(&relay) > 0).then_some(()));
        assert!(!poll(Duration::from_millis(300), || backend.count() > 0));
        faults.heal();
        assert!(waiting.join().unwrap().is_ok());
    });
    backend.until_received(1);
    // A repeat, one that cannot be parsed, and one of another application.
    assert!(relay.recall("g", 1).is_ok());
    let rejected = relay.post(&recall_query(), r#"{"GroupId":"g","MsgSeqList":[]}"#);
    assert_fails(&rejected, 400, "MsgSeqList");
    let foreign = relay.post(&CallbackKind::Group.query(7, None), recall("g", 2));
    assert_fails(&foreign, 403, "SdkAppid");
    let large = padded_recall("g", 3, 100_000);
    let query = format!("x=%20&{}&Sign=ff&&RequestTime=1", recall_query());
    assert!(relay.post(&query, &large).is_ok());
    let received = backend.until_received(2);
    assert_eq!(received[0].target, format!("/im?{}", recall_query()));
    assert_eq!(received[0].body, recall("g", 1).as_bytes());
    assert_eq!(received[1].target, format!("/im?{query}"));
    assert_eq!(received[1].body, large.as_bytes());
    assert_eq!(received[1].header("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(received[1].header("x-forwarded-host"), ["relay"]);
    until("the copies to be counted", || {
        (copies(&relay, "answered") == 2).then_some(())
    });
    until_nothing_is_buffered(&relay);
    assert_eq!(relay.stop().len(), 3);
    assert_eq!(backend.count(), 2);
}

#[test]
fn recalls_do_not_wait_for_their_copies() {
    let backend = Backend::start();
    let relay = copying(&backend)
        .set("RECALL_UPSTREAM__MAX_IN_FLIGHT", "8")
        .set("RECALL_UPSTREAM__TIMEOUT", "1900ms")
        .start();
    backend.reply(Reply::hang());
    let mut connection = Connection::open(relay.callbacks).unwrap();
    let mut number = 0;
    let mut send = |count| {
        for _ in 0..count {
            number += 1;
            let answer = connection.post_recall(&recall("g", number)).unwrap();
            assert!(answer.is_ok() && answer.took < AT_ONCE, "{answer:?}");
        }
    };
    // Two are a quarter.
    send(2);
    backend.until_received(2);
    send(10);
    assert_eq!(copies(&relay, "too_many"), 10);
    until("the timeout", || {
        (copies(&relay, "late") == 2).then_some(())
    });
    // An answer that is an error is an answer.
    backend.reply(Reply::new(503, "", b""));
    send(1);
    until("the answer", || {
        (copies(&relay, "answered") == 1).then_some(())
    });
    backend.reply(Reply::json("{}").late(Duration::from_millis(1)));
    send(1);
    until("the answer", || {
        (copies(&relay, "answered") == 2).then_some(())
    });
    until_nothing_is_buffered(&relay);
    // An answer is never the vendor's.
    assert_eq!(backend.count(), 4);
    assert_eq!(relay.stop().len(), 14);
}

#[test]
fn a_recall_is_not_refused_for_want_of_memory_for_its_copy() {
    let backend = Backend::start();
    let relay = copying(&backend)
        .set("RECALL_HTTP__MAX_BUFFERED_BYTES", "300KiB")
        .set("RECALL_UPSTREAM__TIMEOUT", "1900ms")
        .start();
    backend.reply(Reply::hang());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| relay.post(&other_query(), vec![b' '; 150_000]));
        backend.until_received(1);
        // The event fits beside that, its copy does not.
        let large = padded_recall("g", 1, 90_000);
        assert!(relay.post(&recall_query(), &large).is_ok());
        assert_eq!(copies(&relay, "too_many"), 1);
        // A repeat has no copy that could be dropped.
        assert!(relay.post(&recall_query(), &large).is_ok());
        assert_eq!(copies(&relay, "too_many"), 1);
        backend.reply(Reply::json(BACKENDS_ANSWER));
        assert_eq!(waiting.join().unwrap().status, 200);
    });
    until_nothing_is_buffered(&relay);
    assert_eq!(backend.count(), 1);
    assert_eq!(relay.stop().len(), 1);
}

#[test]
fn copies_open_the_breaker_and_are_dropped_while_it_is_open() {
    let mut backend = Backend::start();
    let relay = copying(&backend).start();
    backend.stop();
    let mut number = 0;
    until("a dropped copy", || {
        number += 1;
        assert!(relay.recall("g", number).is_ok());
        (copies(&relay, "down") > 0).then_some(())
    });
    assert_eq!(relay.readiness()["upstream"]["state"], "down");
    backend.resume();
    until("a copy", || {
        number += 1;
        assert!(relay.recall("g", number).is_ok());
        (copies(&relay, "answered") > 0).then_some(())
    });
    until("all to be counted", || {
        let outcomes = [
            "answered",
            "down",
            "unreachable",
            "late",
            "bad_answer",
            "too_many",
        ];
        let counted: u64 = outcomes.map(|outcome| copies(&relay, outcome)).iter().sum();
        (counted == number).then_some(())
    });
    assert_eq!(relay.stop().len() as u64, number);
}

#[test]
fn exchanges_and_copies_under_way_finish_when_the_relay_stops() {
    let backend = Backend::start();
    let relay = copying(&backend).start();
    backend.reply_by(|request| {
        let is_copy = request.target.contains("Recall");
        let delay = if is_copy { 900 } else { 400 };
        Reply::json(BACKENDS_ANSWER).late(Duration::from_millis(delay))
    });
    assert!(relay.recall("g", 1).is_ok());
    let mut waiting = Connection::open(relay.callbacks).unwrap();
    waiting
        .send(&rig::encode("POST", &format!("/?{}", other_query()), b"{}"))
        .unwrap();
    backend.until_received(2);
    relay.signal(Signal::SIGTERM);
    let answer = waiting.answer().unwrap();
    assert_eq!(answer.text(), BACKENDS_ANSWER);
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(relay.wait_for_clean_exit().len(), 1);
    assert_eq!(backend.answered(), 2);

    // But they do not delay it beyond drain_timeout.
    let relay = copying(&backend)
        .set("RECALL_DRAIN_TIMEOUT", "200ms")
        .set("RECALL_UPSTREAM__TIMEOUT", "1999ms")
        .start();
    backend.reply(Reply::hang());
    assert!(relay.recall("g", 1).is_ok());
    backend.until_received(3);
    let began = Instant::now();
    relay.stop();
    assert!(
        began.elapsed() < Duration::from_millis(1900),
        "{:?}",
        began.elapsed()
    );
}

// --- Certificates, and settings that change -------------------------------------------------------------------

#[test]
fn https_needs_the_right_authority_name_and_client_certificate() {
    let authority = Authority::new();
    let backend = Backend::start_tls(&authority);
    let (cert, key) = authority.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
    let (ca, url) = (authority.ca(), url("https", &backend));
    let right = Setup::new()
        .set("RECALL_UPSTREAM__URL", &url)
        .set("RECALL_UPSTREAM__TLS__CA", text(&ca))
        .set("RECALL_UPSTREAM__TLS__CERT", text(&cert))
        .set("RECALL_UPSTREAM__TLS__KEY", text(&key));
    let relay = right.start();
    for _ in 0..3 {
        assert_handed_on(&relay, &backend);
    }
    assert_eq!(backend.connections(), 1);
    let address = backend.address().to_string();
    assert_eq!(backend.last().header("host"), [address]);
    relay.stop();

    let other_authority = Authority::new();
    let (other_ca, (foreign, foreign_key)) = (
        other_authority.ca(),
        other_authority.sign("client", ExtendedKeyUsagePurpose::ClientAuth),
    );
    let http = url.replace("https", "http");
    let without = |names: &[&str]| {
        names.iter().fold(right.clone(), |setup, name| {
            setup.without(&format!("RECALL_UPSTREAM__TLS__{name}"))
        })
    };
    for (setup, reason) in [
        (without(&["CA"]), "UnknownIssuer"),
        (
            without(&["CA"]).set("RECALL_UPSTREAM__TLS__CA", text(&other_ca)),
            "invalid peer certificate",
        ),
        (without(&["CERT", "KEY"]), "CertificateRequired"),
        (
            without(&["CERT", "KEY"])
                .set("RECALL_UPSTREAM__TLS__CERT", text(&foreign))
                .set("RECALL_UPSTREAM__TLS__KEY", text(&foreign_key)),
            "alert",
        ),
        (
            Setup::new().set("RECALL_UPSTREAM__URL", &http),
            "no usable answer",
        ),
    ] {
        let before = backend.count();
        let relay = setup.start();
        let answer = other(&relay);
        assert_eq!(answer.status, 502, "{answer:?}");
        assert_eq!(backend.count(), before);
        let logged = until("the reason", || relay.log_entry("upstream_failed"));
        let told = logged["reason"].as_str().unwrap();
        assert!(told.contains(reason), "{reason}: {told}");
        assert!(relay.recall("g", 1).is_ok());
        relay.stop();
    }
}

#[test]
fn an_authority_that_is_no_certificate_is_only_the_upstreams_problem() {
    let authority = Authority::new();
    let backend = Backend::start_tls(&authority);
    let setup = Setup::new().set("RECALL_UPSTREAM__URL", &url("https", &backend));
    let (own_cert, own_key) = authority.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
    let file = |name: &str| setup.folder().join(name);
    let (ca, cert, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    fs::write(&ca, "not a certificate").unwrap();
    // Of another authority.
    let other_authority = Authority::new();
    let (foreign, foreign_key) =
        other_authority.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
    fs::copy(foreign, &cert).unwrap();
    fs::copy(foreign_key, &key).unwrap();
    let relay = setup
        .with("RECALL_UPSTREAM__TLS__CA", text(&ca))
        .set("RECALL_UPSTREAM__TLS__CERT", text(&cert))
        .set("RECALL_UPSTREAM__TLS__KEY", text(&key))
        .start();
    let logged = until("the reason", || relay.log_entry("upstream_failed"));
    let reason = logged["reason"].as_str().unwrap();
    assert!(reason.contains("upstream.tls.ca"), "{logged}");
    assert!(relay.recall("g", 1).is_ok());
    assert_eq!(relay.admin("/readyz").status, 200);
    assert_fails(&other(&relay), 502, "upstream.tls.ca");

    // The authority, then the client's certificate are replaced.
    fs::copy(authority.ca(), &ca).unwrap();
    relay.signal(Signal::SIGHUP);
    until_reloaded(&relay, 1);
    assert_eq!(other(&relay).status, 502);
    assert_eq!(backend.count(), 0);
    fs::copy(own_key, &key).unwrap();
    fs::copy(own_cert, &cert).unwrap();
    until_reloaded(&relay, 2);
    assert_handed_on(&relay, &backend);
    relay.stop();
}

#[test]
fn the_backend_changes_while_the_relay_runs() {
    let backends = [Backend::start(), Backend::start()];
    let setup = Setup::new();
    let file = setup.folder().join("relay.toml");
    let write = |more: &str| fs::write(&file, more).unwrap();
    let section = |backend: &Backend| format!("[upstream]\nurl = \"{}\"\n", url("http", backend));
    write("");
    let relay = setup.set("RECALL_CONFIG", text(&file)).start();
    assert!(relay.log_entry("no_upstream").is_some());
    assert!(other(&relay).is_ok());
    until("the line", || relay.log_entry("command_ignored"));
    assert!(relay.readiness().get("upstream").is_none());

    write(&section(&backends[0]));
    relay.signal(Signal::SIGHUP);
    until_reloaded(&relay, 1);
    assert_handed_on(&relay, &backends[0]);
    assert_eq!(relay.metric("recall_upstream_up"), "1");

    // An exchange that is under way stays with its backend.
    backends[0].reply(Reply::json(BACKENDS_ANSWER).late(Duration::from_millis(500)));
    let target = format!("/?{}", other_query());
    let mut waiting = Connection::open(relay.callbacks).unwrap();
    waiting.send(&rig::encode("POST", &target, b"{}")).unwrap();
    backends[0].until_received(2);
    write(&section(&backends[1]));
    relay.signal(Signal::SIGHUP);
    until_reloaded(&relay, 2);
    assert_handed_on(&relay, &backends[1]);
    assert_eq!(waiting.answer().unwrap().text(), BACKENDS_ANSWER);

    write("[upstream]\nurl = \"ftp://x\"\n");
    relay.signal(Signal::SIGHUP);
    let failed = until("the failure", || relay.log_entry("reload_failed"));
    assert!(
        failed["reason"].as_str().unwrap().contains("upstream.url"),
        "{failed}"
    );
    assert_handed_on(&relay, &backends[1]);

    write("");
    relay.signal(Signal::SIGHUP);
    until_reloaded(&relay, 3);
    let warned = until("the warning", || {
        relay.log_entries("no_upstream").into_iter().nth(1)
    });
    assert_eq!(warned["level"], "WARN", "{warned}");
    assert!(other(&relay).is_ok());
    assert!(relay.readiness().get("upstream").is_none());
    assert_eq!(backends.map(|backend| backend.count()), [2, 2]);
    relay.stop();
}

// --- All at once ----------------------------------------------------------------------------------------------

/// How many callbacks of each kind are sent in a second.
const RATE: u32 = 500;

/// How many connections send them. While the backend hangs, a connection waits for it at most five times.
const SENDERS: u32 = 25;

/// Sends at the rate until stopped, and returns the answers.
fn send_until(
    stopped: &AtomicBool,
    to: SocketAddr,
    query: &str,
    body: impl Fn(u64) -> String,
) -> Vec<Answer> {
    let mut connection = Connection::open(to).unwrap();
    let (began, pause) = (Instant::now(), Duration::from_secs(1) * SENDERS / RATE);
    let mut answers = Vec::new();
    while !stopped.load(Ordering::Relaxed) {
        let number = answers.len() as u64 + 1;
        let body = body(number);
        let target = format!("/?{query}");
        answers.push(
            connection
                .request("POST", &target, body.as_bytes())
                .unwrap(),
        );
        let due = began + pause * u32::try_from(number).unwrap();
        thread::park_timeout(due.saturating_duration_since(Instant::now()));
    }
    answers
}

#[test]
fn a_thousand_callbacks_a_second_while_the_backend_dies_and_returns() {
    let mut backend = Backend::start();
    backend.reply(Reply::json(BACKENDS_ANSWER));
    let relay = setup(&backend).start();
    let (stopped, to) = (AtomicBool::new(false), relay.callbacks);
    let lasts = |seconds| {
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            thread::park_timeout(left);
        }
    };
    let (recalls, others) = thread::scope(|scope| {
        let stopped = &stopped;
        let mut senders = Vec::new();
        for sender in 0..SENDERS {
            let body = move |number| recall(&format!("g{sender}"), number);
            let recalls = scope.spawn(move || send_until(stopped, to, &recall_query(), body));
            let others = scope.spawn(move || send_until(stopped, to, &other_query(), other_body));
            senders.push((recalls, others));
        }
        lasts(1.0);
        backend.stop();
        lasts(1.0);
        backend.resume();
        lasts(1.5);
        backend.reply(Reply::hang());
        lasts(2.0);
        backend.reply(Reply::json(BACKENDS_ANSWER));
        until("the backend to be up", || {
            (relay.metric("recall_upstream_up") == "1").then_some(())
        });
        lasts(0.5);
        stopped.store(true, Ordering::Relaxed);
        let (mut recalls, mut others) = (Vec::new(), Vec::new());
        for (recall, other) in senders {
            recalls.extend(recall.join().unwrap());
            others.extend(other.join().unwrap());
        }
        (recalls, others)
    });
    for answer in &recalls {
        assert!(answer.is_ok() && answer.took < VENDOR_WAITS, "{answer:?}");
    }
    for answer in &others {
        assert!(
            [200, 502, 504].contains(&answer.status) && answer.took < VENDOR_WAITS,
            "{answer:?}"
        );
        assert_eq!(
            answer.status == 200,
            answer.text() == BACKENDS_ANSWER,
            "{answer:?}"
        );
    }
    let of_status = |status| {
        others
            .iter()
            .filter(|answer| answer.status == status)
            .count()
    };
    assert!(
        of_status(200) > 500 && of_status(502) > 100,
        "{} {}",
        of_status(200),
        of_status(502)
    );
    assert!(recalls.len() > 1500, "{}", recalls.len());
    until_nothing_is_buffered(&relay);
    assert_eq!(relay.stop().len(), recalls.len());
}
