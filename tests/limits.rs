//! Every limit on who is outside holds, and lets go again.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod rig;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rig::{Connection, Setup, recall, recall_query};

/// Much longer than the limits that these tests set, much shorter than the built-in ones.
const SOON: Duration = Duration::from_secs(8);

#[test]
fn slow_and_silent_peers_are_let_go() {
    let relay = Setup::new()
        .set("RECALL_HTTP__READ_TIMEOUT", "300ms")
        .set("RECALL_HTTP__IDLE_TIMEOUT", "1s")
        .start();
    let mut slow_body = Connection::open(relay.callbacks).unwrap();
    slow_body.send(&head(9)).unwrap();
    slow_body.send(b"{").unwrap();
    let answer = slow_body.answer().unwrap();
    assert_eq!(answer.status, 408);
    assert!(
        answer
            .text()
            .contains("body took longer than http.read_timeout"),
        "{}",
        answer.text()
    );

    for (what, bytes, earliest) in [
        ("silent", &b""[..], 900),
        ("a slow head", b"POST / HTT", 250),
        ("half an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\n", 900),
    ] {
        let took = closed_after(relay.callbacks, what, bytes);
        assert!(took >= Duration::from_millis(earliest), "{what}: {took:?}");
    }
}

/// How long a peer that sends these bytes and no more is kept.
#[track_caller]
fn closed_after(to: std::net::SocketAddr, what: &str, bytes: &[u8]) -> Duration {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(bytes).unwrap();
    let began = Instant::now();
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{what}: not closed after {:?}: {error}", began.elapsed()),
    }
    began.elapsed()
}

#[test]
fn connections_beyond_the_limit_wait() {
    let relay = Setup::new()
        .set("RECALL_HTTP__MAX_CONNECTIONS", "1")
        .start();
    let target = format!("/?{}", recall_query());
    let mut first = Connection::open(relay.callbacks).unwrap();
    let mut on_first = |number| {
        let answer = first.request("POST", &target, recall("first", number).as_bytes());
        assert!(answer.unwrap().is_ok());
    };
    on_first(1);
    // The kernel takes it, with all it sends, before the first goes on.
    let mut second = Connection::open(relay.callbacks).unwrap();
    let body = recall("second", 1);
    second.send(&head(body.len())).unwrap();
    second.send(body.as_bytes()).unwrap();
    (2..=50).for_each(&mut on_first);
    drop(first);
    assert!(second.answer().unwrap().is_ok());
    let order: Vec<_> = relay
        .stop()
        .iter()
        .map(|event| event["subject"].as_str().unwrap().to_owned())
        .collect();
    let mut expected = vec!["first"; 50];
    expected.push("second");
    assert_eq!(order, expected);
}

/// The head of a recall whose body has this length.
fn head(length: usize) -> Vec<u8> {
    format!(
        "POST /?{} HTTP/1.1\r\nHost: r\r\nContent-Length: {length}\r\n\r\n",
        recall_query()
    )
    .into_bytes()
}
