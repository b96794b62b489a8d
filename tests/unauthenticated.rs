//! What a request gets, and what it may take, if it does not pass the checks that are configured.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use recall_relay::vendor::CallbackKind;
use rig::{APP, Answer, Backend, Connection, Reply, Setup, recall, recall_query, request, until};

const TOKEN: &str = "token";

/// What a backend answers: it forbids the message.
const FORBIDDEN: &str = r#"{"ActionStatus":"OK","ErrorInfo":"no","ErrorCode":10100}"#;

/// Far less than `http.read_timeout`, for which the relay would wait for a body.
const AT_ONCE: Duration = Duration::from_secs(3);

fn setup() -> Setup {
    Setup::new().set("RECALL_AUTH__TOKENS", TOKEN)
}

fn signed(kind: CallbackKind) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    kind.query(APP, Some((TOKEN, now)))
}

fn unsigned(kind: CallbackKind) -> String {
    kind.query(APP, None)
}

fn head(target: &str, length: usize) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: r\r\nContent-Length: {length}\r\n\r\n")
}

/// Sends bytes on a new connection. Returns the answer, and whether the relay keeps the connection open.
fn send(to: SocketAddr, bytes: &[u8]) -> (Answer, bool) {
    let mut connection = Connection::open(to).unwrap();
    let began = Instant::now();
    connection.send(bytes).unwrap();
    let mut answer = connection.answer().unwrap();
    answer.took = began.elapsed();
    let announced = answer.header("connection") == Some("close");
    let again = head("/nowhere", 0);
    let is_open = connection.send(again.as_bytes()).is_ok() && connection.answer().is_ok();
    assert_eq!(announced, !is_open, "{answer:?}");
    (answer, is_open)
}

#[track_caller]
fn assert_answer((answer, _): &(Answer, bool), status: u16, text: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.text().contains(text), "{answer:?}");
    assert!(answer.took < AT_ONCE, "{answer:?}");
}

#[test]
fn who_sends_is_judged_before_the_body_is_read() {
    let relay = setup().start();
    let target = |query: &str| format!("/?{query}");
    let of_recall = target(&unsigned(CallbackKind::Group));
    let of_other = target(&unsigned(CallbackKind::Other));
    let probe = target(&unsigned(CallbackKind::Probe));
    let recall = recall("g", 1);
    let large = format!("{recall:<5000}");
    let ok = r#""ErrorCode":0"#;
    let whole = |target: &str, body: &str| head(target, body.len()) + body;
    let chunked = |target: &str, body: &str| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        )
    };
    for (what, request, status, text) in [
        ("a recall", whole(&of_recall, &recall), 403, "Sign"),
        ("without its body", head(&of_recall, 4097), 403, "Sign"),
        ("a large recall", whole(&of_recall, &large), 403, "Sign"),
        ("chunked", chunked(&of_recall, &recall), 403, "Sign"),
        ("large, chunked", chunked(&of_recall, &large), 403, "Sign"),
        ("the probe", whole(&probe, ""), 200, ok),
        ("with an object", whole(&probe, "{}"), 200, ok),
        ("chunked, an object", chunked(&probe, "{\"a\":1}"), 200, ok),
        ("another command", whole(&of_other, "{}"), 200, ok),
        ("its head alone", head(&of_other, 200_000), 200, ok),
        ("a recall in its body", whole(&of_other, &recall), 200, ok),
        ("no command", whole("/", "{}"), 200, ok),
        ("no command, empty", whole("/", ""), 200, ok),
        ("no command, a recall", whole("/", &recall), 403, "SdkAppid"),
        ("no command, large", head("/", 4097), 200, ok),
        ("no command, large, chunked", chunked("/", &large), 200, ok),
        ("another path", whole("/other", "{}"), 404, "path"),
    ] {
        let sent = send(relay.callbacks, request.as_bytes());
        assert_answer(&sent, status, text);
        assert!(!sent.1, "{what} keeps its connection open");
    }
    assert_eq!(relay.metric("recall_http_unauthenticated_bytes"), "0");

    // What is signed is read, whatever it is, and keeps its connection.
    for (kind, body, status, text) in [
        (CallbackKind::Group, &*large, 200, ok),
        (CallbackKind::Other, "{}", 200, ok),
        (CallbackKind::Other, "", 200, ok),
        (CallbackKind::Other, &large, 400, "body names"),
    ] {
        let target = target(&signed(kind));
        let sent = send(relay.callbacks, whole(&target, body).as_bytes());
        assert_answer(&sent, status, text);
        assert!(sent.1, "{target} {body}");
    }
    assert_eq!(relay.outcome_count("accepted"), 1);
    assert_eq!(relay.outcome_count("rejected"), 1);
    assert_eq!(relay.stop().len(), 2);
}

#[test]
fn an_early_answer_arrives_although_the_body_is_still_sent() {
    let relay = setup().start();
    let body = "x".repeat(250_000);
    for (query, status) in [
        (unsigned(CallbackKind::Other), 200),
        (unsigned(CallbackKind::Group), 403),
    ] {
        for _ in 0..20 {
            let mut stream = TcpStream::connect(relay.callbacks).unwrap();
            let head = head(&format!("/?{query}"), body.len());
            stream.write_all(head.as_bytes()).unwrap();
            // The relay has answered by now.
            thread::park_timeout(Duration::from_millis(20));
            stream.write_all(body.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{answer}"
            );
        }
    }
}

#[test]
fn a_body_that_is_not_authenticated_has_a_small_budget() {
    let relay = setup()
        .set("RECALL_HTTP__MAX_UNAUTHENTICATED_BYTES", "8KiB")
        .start();
    let slow = |target: &str| {
        let mut connection = Connection::open(relay.callbacks).unwrap();
        let body = "x".repeat(2000);
        connection.send(head(target, 2001).as_bytes()).unwrap();
        connection.send(body.as_bytes()).unwrap();
        connection
    };
    let no_command = "/?SdkAppid=1400000001";
    let mut waiting: Vec<_> = (0..3).map(|_| slow(no_command)).collect();
    until("three bodies", || {
        let used = relay.metric("recall_http_unauthenticated_bytes");
        (used.parse::<usize>().unwrap() >= 3 * 2000).then_some(())
    });
    waiting.push(slow(no_command));
    let post = |query: &str, body: &str| {
        let target = format!("/?{query}");
        request(relay.callbacks, "POST", &target, body.as_bytes())
    };
    let large = "x".repeat(3000);
    let refused = post("SdkAppid=1400000001", &large);
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(
        refused.text().contains("http.max_unauthenticated_bytes"),
        "{refused:?}"
    );
    assert_eq!(refused.header("retry-after"), Some("1"));
    // An unsigned recall is refused as such, and nobody else is.
    let refused = post(&unsigned(CallbackKind::Group), &large);
    assert_eq!(refused.status, 403, "{refused:?}");
    assert!(post(&unsigned(CallbackKind::Probe), "").is_ok());
    assert!(post(&unsigned(CallbackKind::Other), &large).is_ok());
    assert!(post(&signed(CallbackKind::Group), &recall("g", 1)).is_ok());

    let full = until("a WARN", || relay.log_entry("memory_budget_used_up"));
    assert_eq!(full["setting"], "http.max_unauthenticated_bytes", "{full}");
    assert_eq!(full["bytes"], 8192, "{full}");
    assert_eq!(relay.log_entries("memory_budget_used_up").len(), 1);
    drop(waiting);
    until("the memory to be released", || {
        (relay.metric("recall_http_unauthenticated_bytes") == "0").then_some(())
    });
}

fn with_backend(backend: &Backend) -> Setup {
    setup().set(
        "RECALL_UPSTREAM__URL",
        &format!("http://{}/im", backend.address()),
    )
}

#[test]
fn with_a_backend_all_but_recalls_is_handed_on_within_the_small_budget() {
    let backend = Backend::start();
    backend.reply(Reply::json(FORBIDDEN));
    let relay = with_backend(&backend)
        .set("RECALL_HTTP__MAX_UNAUTHENTICATED_BYTES", "64KiB")
        .set("RECALL_HTTP__READ_TIMEOUT", "1s")
        .start();
    let recall = recall("g", 1);
    let large = "x".repeat(20_000);
    for (query, body, status) in [
        (unsigned(CallbackKind::Other), "{}", 200),
        (unsigned(CallbackKind::Other), &large, 200),
        // Without a signature it is no recall.
        (unsigned(CallbackKind::Other), &recall, 200),
        (unsigned(CallbackKind::Probe), "", 200),
        (unsigned(CallbackKind::Probe), "{}", 200),
        ("x=1".to_owned(), &large, 200),
        ("x=1".to_owned(), &recall, 403),
        (unsigned(CallbackKind::Group), &recall, 403),
        (unsigned(CallbackKind::Group), &large, 403),
    ] {
        let before = backend.count();
        let request = head(&format!("/?{query}"), body.len()) + body;
        let (answer, is_open) = send(relay.callbacks, request.as_bytes());
        assert_eq!(answer.status, status, "{query} {answer:?}");
        // The request that follows on the connection is answered by the relay.
        assert_eq!(
            backend.count() - before,
            usize::from(status == 200),
            "{query}"
        );
        assert_eq!(is_open, status == 200, "{query}");
        if status == 200 {
            assert_eq!(answer.text(), FORBIDDEN);
            assert_eq!(backend.last().body, body.as_bytes());
        }
    }

    // An answer earns no idle time.
    let mut connection = Connection::open(relay.callbacks).unwrap();
    let target = format!("/?{}", unsigned(CallbackKind::Other));
    connection.request("POST", &target, b"{}").unwrap();
    let began = Instant::now();
    connection.answer().unwrap_err();
    let took = began.elapsed();
    assert!((800..6000).contains(&took.as_millis()), "{took:?}");

    // What waits for the backend takes the budget of others like it, and of nobody else.
    backend.reply(Reply::hang());
    let body = "x".repeat(50_000);
    let post = |query: String| relay.post(&query, &body);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| post(unsigned(CallbackKind::Other)));
        until("the memory to be in use", || {
            let used = relay.metric("recall_http_unauthenticated_bytes");
            (used.parse::<usize>().unwrap() >= 50_000).then_some(())
        });
        let refused = post(unsigned(CallbackKind::Other));
        assert_eq!(refused.status, 502, "{refused:?}");
        assert!(refused.text().contains("too many"), "{refused:?}");
        let signed = scope.spawn(|| post(signed(CallbackKind::Other)));
        until("the signed one to be handed on", || {
            (relay.metric("recall_http_buffered_bytes") != "0").then_some(())
        });
        backend.reply(Reply::json(FORBIDDEN));
        assert_eq!(waiting.join().unwrap().text(), FORBIDDEN);
        assert_eq!(signed.join().unwrap().text(), FORBIDDEN);
    });
}

#[test]
fn a_source_that_is_not_allowed_is_not_authenticated() {
    let backend = Backend::start();
    let sources = "203.0.113.0/24";
    let relay = setup().set("RECALL_AUTH__ALLOWED_SOURCES", sources).start();
    let target = format!("/?{}", signed(CallbackKind::Group));
    let sent = send(relay.callbacks, head(&target, 5000).as_bytes());
    assert_answer(&sent, 403, "auth.allowed_sources");
    assert!(!sent.1);
    relay.kill();

    let relay = with_backend(&backend)
        .set("RECALL_AUTH__ALLOWED_SOURCES", sources)
        .start();
    let target = format!("/?{}", signed(CallbackKind::Other));
    let sent = send(relay.callbacks, head(&target, 5000).as_bytes());
    assert_answer(&sent, 403, "auth.allowed_sources");
    assert!(!sent.1);
    assert_eq!(backend.count(), 0);
}

/// Without any check, everything is authenticated, and the start says so.
#[test]
fn without_checks_every_request_is_authenticated() {
    let relay = Setup::new().start();
    let target = format!("/?{}", recall_query());
    let body = format!("{:<5000}", recall("g", 1));
    let request = head(&target, body.len()) + &body;
    let sent = send(relay.callbacks, request.as_bytes());
    assert_answer(&sent, 200, r#""ErrorCode":0"#);
    assert!(sent.1);
    let warned = relay.log_entries("signatures_unchecked");
    assert_eq!(warned.len(), 1, "{}", relay.log());
}
