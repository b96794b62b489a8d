//! The relay enforces every limit on its clients, and recovers afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod rig;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use recall_relay::vendor::CallbackKind;
use rig::{APP, Connection, Relay, Setup, encode, large_recall, recall, recall_query, until};

/// Much longer than the timeouts that these tests set, much shorter than the default ones.
const SOON: Duration = Duration::from_secs(8);

#[test]
fn slow_and_idle_connections_are_closed() {
    let relay = Setup::new()
        .set("RECALL_HTTP__READ_TIMEOUT", "300ms")
        .set("RECALL_HTTP__IDLE_TIMEOUT", "2s")
        .start();
    let mut slow_body = Connection::open(relay.callbacks).unwrap();
    slow_body.send(&head(9)).unwrap();
    slow_body.send(b"{").unwrap();
    let answer = slow_body.answer().unwrap();
    assert_eq!(answer.status, 408);
    assert!(
        answer
            .text()
            .contains("body did not arrive within http.read_timeout"),
        "{}",
        answer.text()
    );

    let body = recall("g", 1);
    let request = [head(body.len()), body.into_bytes()].concat();
    for (what, bytes, within) in [
        ("silent", &b""[..], 250..900),
        ("a slow head", b"POST / HTT", 250..900),
        (
            "an HTTP/2 preface",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            0..900,
        ),
        ("silent after a request", &request, 1900..8000),
    ] {
        let took = closed_after(relay.callbacks, what, bytes);
        assert!(within.contains(&took.as_millis()), "{what}: {took:?}");
    }

    let idle_is_shorter = Setup::new()
        .set("RECALL_HTTP__READ_TIMEOUT", "8s")
        .set("RECALL_HTTP__IDLE_TIMEOUT", "500ms")
        .start();
    let took = closed_after(idle_is_shorter.callbacks, "idle", &request);
    assert!((450..2000).contains(&took.as_millis()), "{took:?}");

    let mut kept_alive = Connection::open(relay.callbacks).unwrap();
    kept_alive.send(&request).unwrap();
    assert!(kept_alive.answer().unwrap().is_ok());
    // Longer than http.read_timeout, so that the timer has seen the connection idle.
    thread::park_timeout(Duration::from_millis(500));
    kept_alive.send(b"POST / HTT").unwrap();
    let began = Instant::now();
    kept_alive.answer().unwrap_err();
    let took = began.elapsed();
    assert!((250..900).contains(&took.as_millis()), "{took:?}");
}

/// Sends these bytes and nothing more; returns how long the relay keeps the connection open.
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
    let open = |count: u32| {
        until("the gauge of connections", || {
            (relay.metric("recall_http_connections") == count.to_string()).then_some(())
        });
    };
    open(0);
    let mut first = Connection::open(relay.callbacks).unwrap();
    open(1);
    let mut on_first = |number| {
        let answer = first.post_recall(&recall("first", number));
        assert!(answer.unwrap().is_ok());
    };
    on_first(1);
    // The kernel accepts the second connection and its request; the relay must not read it before the first is closed.
    let mut second = Connection::open(relay.callbacks).unwrap();
    let body = recall("second", 1);
    second.send(&head(body.len())).unwrap();
    second.send(body.as_bytes()).unwrap();
    (2..=50).for_each(&mut on_first);
    drop(first);
    assert!(second.answer().unwrap().is_ok());
    open(1);
    drop(second);
    open(0);
    let order: Vec<_> = relay
        .stop()
        .iter()
        .map(|event| event["subject"].as_str().unwrap().to_owned())
        .collect();
    let mut expected = vec!["first"; 50];
    expected.push("second");
    assert_eq!(order, expected);
}

/// A relay that checks signatures, with few connections.
fn few_connections(limit: &str) -> Setup {
    Setup::new()
        .set("RECALL_AUTH__TOKENS", "token")
        .set("RECALL_HTTP__MAX_CONNECTIONS", limit)
}

/// A request with a signed recall.
fn signed_recall(number: u64) -> Vec<u8> {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let query = CallbackKind::Group.query(APP, Some(("token", now)));
    encode(
        "POST",
        &format!("/?{query}"),
        recall("g", number).as_bytes(),
    )
}

fn open(relay: &Relay) -> TcpStream {
    let stream = TcpStream::connect_timeout(&relay.callbacks, SOON).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn until_open(relay: &Relay, count: usize) {
    until("the gauge of connections", || {
        (relay.metric("recall_http_connections") == count.to_string()).then_some(())
    });
}

fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = (&*stream).read(&mut [0; 1]);
    stream.set_nonblocking(false).unwrap();
    !matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn the_connection_that_has_been_idle_longest_is_shed() {
    let relay = few_connections("4").start();
    let mut numbers = 1..;
    let mut recall_on = |connection: &mut Connection| {
        connection
            .send(&signed_recall(numbers.next().unwrap()))
            .unwrap();
        assert!(connection.answer().unwrap().is_ok());
    };
    let mut first = Connection::open(relay.callbacks).unwrap();
    recall_on(&mut first);
    let silent: Vec<_> = (0..3).map(|_| open(&relay)).collect();
    until_open(&relay, 4);
    // Sending slowly keeps no place.
    (&silent[0]).write_all(b"POST / HTTP/1.1\r\n").unwrap();

    let mut kept = vec![first];
    for shed in 1..=3 {
        let mut new = Connection::open(relay.callbacks).unwrap();
        recall_on(&mut new);
        kept.push(new);
        until("the connection to be shed", || {
            let total = relay.metric("recall_http_connections_shed_total");
            (total == shed.to_string()).then_some(())
        });
        let closed: Vec<_> = silent.iter().map(is_closed).collect();
        let expected: Vec<_> = (0..3).map(|place| place < shed).collect();
        assert_eq!(closed, expected);
    }
    let full = relay.log_entries("connections_full");
    assert_eq!(full.len(), 1, "{full:?}");
    assert_eq!(
        (&full[0]["level"], &full[0]["setting"], &full[0]["limit"]),
        (&"WARN".into(), &"http.max_connections".into(), &4.into()),
    );
    assert_eq!(full[0]["authenticated"], 1);

    // Those that have brought a recall are not shed: the next one waits.
    let mut waiting = Connection::open(relay.callbacks).unwrap();
    waiting.send(&signed_recall(10_000)).unwrap();
    for _ in 0..50 {
        kept.iter_mut().for_each(&mut recall_on);
    }
    drop(kept.pop());
    assert!(waiting.answer().unwrap().is_ok());
    let order = relay.stop();
    let last = order.last().unwrap();
    assert_eq!(last["data"]["messages"][0]["seq"], 10_000, "{last}");
}

#[test]
fn connections_of_trusted_proxies_are_not_shed() {
    let relay = few_connections("2")
        .set("RECALL_AUTH__TRUSTED_PROXIES", "127.0.0.1")
        .set("RECALL_HTTP__READ_TIMEOUT", "2s")
        .start();
    let began = Instant::now();
    let silent: Vec<_> = (0..2).map(|_| open(&relay)).collect();
    until_open(&relay, 2);
    let mut new = Connection::open(relay.callbacks).unwrap();
    new.send(&signed_recall(1)).unwrap();
    assert!(new.answer().unwrap().is_ok());
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1800), "{took:?}");
    drop(silent);
    assert_eq!(relay.metric("recall_http_connections_shed_total"), "0");
}

#[test]
fn a_source_may_have_a_number_of_connections() {
    let setup = few_connections("100").set("RECALL_HTTP__MAX_CONNECTIONS_PER_SOURCE", "2");
    let relay = setup.start();
    let mut silent: Vec<_> = (0..2).map(|_| open(&relay)).collect();
    until_open(&relay, 2);
    let refused = open(&relay);
    until("the third to be closed", || {
        is_closed(&refused).then_some(())
    });
    assert!(!silent.iter().any(is_closed));
    assert_eq!(relay.metric("recall_http_connections_refused_total"), "1");
    let logged = relay.log_entry("source_connections_full").unwrap();
    assert_eq!(
        (&logged["source"], &logged["limit"]),
        (&"127.0.0.1".into(), &2.into())
    );
    // One that has ended does not count.
    silent.pop();
    until_open(&relay, 1);
    let mut again = Connection::open(relay.callbacks).unwrap();
    again.send(&signed_recall(1)).unwrap();
    assert!(again.answer().unwrap().is_ok());
    relay.kill();

    for exempt in [
        "RECALL_AUTH__ALLOWED_SOURCES",
        "RECALL_AUTH__TRUSTED_PROXIES",
    ] {
        let relay = setup.clone().set(exempt, "127.0.0.1").start();
        let silent: Vec<_> = (0..5).map(|_| open(&relay)).collect();
        until_open(&relay, 5);
        assert!(!silent.iter().any(is_closed), "{exempt}");
        relay.kill();
    }
}

#[test]
fn many_connections_may_wait_to_be_accepted() {
    let relay = few_connections("1000").start();
    // While it is stopped, the kernel completes connections on its behalf, as many as the backlog has places for.
    relay.signal(Signal::SIGSTOP);
    let began = Instant::now();
    let waiting: Vec<_> = (0..600).map(|_| open(&relay)).collect();
    let took = began.elapsed();
    relay.signal(Signal::SIGCONT);
    // A connection that finds no place is tried again after a second.
    assert!(took < Duration::from_millis(900), "{took:?}");
    until_open(&relay, 600);
    drop(waiting);
}

#[test]
fn silent_clients_of_the_admin_listener_do_not_fail_the_liveness_probe() {
    let relay = Setup::new().start();
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(relay.admin).unwrap());
    }
    let alive = relay.admin("/livez");
    assert_eq!(alive.status, 200);
    assert!(alive.took < Duration::from_secs(1), "{alive:?}");
    assert!(is_closed(&silent[0]) && !is_closed(&silent[199]));
}

/// With as many connections as `http.max_connections` allows, no descriptor would be left for the spool or the sink.
#[test]
fn connections_are_limited_to_what_the_limit_of_open_files_leaves() {
    let setup = Setup::new().with_open_files(260);
    let relay = setup.start();
    let warning = relay.log_entry("nofile_limit_low").unwrap();
    assert_eq!(warning["level"], "WARN", "{warning}");
    let figures = ["limit", "max_connections", "used", "needed"].map(|name| warning[name].clone());
    assert_eq!(figures, [260, 1024, 4, 1280], "{warning}");

    let mut open: Vec<_> = (1..=4)
        .map(|number| {
            let mut connection = Connection::open(relay.callbacks).unwrap();
            let answer = connection.post_recall(&recall("open", number)).unwrap();
            assert!(answer.is_ok(), "{answer:?}");
            connection
        })
        .collect();
    // Together more than the limit of open files. What is open works on.
    let waiting: Vec<_> = (0..100)
        .map(|_| Connection::open(relay.callbacks).unwrap())
        .collect();
    let answer = open[0].post_recall(&recall("open", 5)).unwrap();
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!(relay.metric("recall_http_connections"), "4");
    drop((open, waiting));
    assert!(relay.recall("after", 1).is_ok());
    assert_eq!(relay.log_entry("accept_failed"), None);
    assert_eq!(relay.stop().len(), 6);

    let enough = setup.with("RECALL_HTTP__MAX_CONNECTIONS", "4").start();
    assert_eq!(enough.log_entry("nofile_limit_low"), None);
    enough.stop();
}

#[test]
fn bodies_beyond_the_memory_budget_are_refused() {
    let relay = Setup::new()
        .set("RECALL_HTTP__MAX_BODY_BYTES", "16KiB")
        .set("RECALL_HTTP__MAX_BUFFERED_BYTES", "16KiB")
        .start();
    let padded = |group: &str, length: usize| format!("{:<length$}", recall(group, 1));
    let slow = padded("slow", 12_000);
    let (early, late) = slow.split_at(slow.len() - 1);
    let open = || {
        let mut sender = Connection::open(relay.callbacks).unwrap();
        sender.send(&head(slow.len())).unwrap();
        sender.send(early.as_bytes()).unwrap();
        sender
    };
    let mut sender = open();

    let other = || relay.post(&recall_query(), padded("other", 8000));
    let refused = rig::until("a body to be refused", || {
        let answer = other();
        if answer.is_ok() {
            // The relay may have read this body first and refused the slow one for lack of memory: send that one again.
            sender = open();
            return None;
        }
        Some(answer)
    });
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(
        refused
            .text()
            .contains("request bodies use all of http.max_buffered_bytes"),
        "{}",
        refused.text()
    );
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_ne!(relay.outcome_count("unavailable"), 0);
    let buffered = || {
        relay
            .metric("recall_http_buffered_bytes")
            .parse::<usize>()
            .unwrap()
    };
    assert!((12_000..14_000).contains(&buffered()), "{}", buffered());
    assert_eq!(
        relay.admin("/readyz").status,
        200,
        "small bodies must still be accepted"
    );
    assert!(relay.recall("small", 1).is_ok());

    sender.send(late.as_bytes()).unwrap();
    assert!(
        sender.answer().unwrap().is_ok(),
        "the slow body has its memory permit and must be accepted"
    );
    assert!(other().is_ok(), "the memory was not released");
    until("the gauge of the memory", || {
        (buffered() == 0).then_some(())
    });
}

#[test]
fn callbacks_beyond_max_waiting_are_refused() {
    // Timeouts of the connection that are shorter than the wait must not end the wait for an answer.
    let setup = Setup::new()
        .set("RECALL_SPOOL__MAX_WAITING", "1")
        .set("RECALL_HTTP__READ_TIMEOUT", "1s")
        .set("RECALL_HTTP__IDLE_TIMEOUT", "1s");
    let relay = setup.start();
    assert!(relay.recall("before", 1).is_ok());
    // While this lock is held, nothing is committed: one callback is being written, one waits, the others are refused.
    let disk = rusqlite::Connection::open(setup.spool()).unwrap();
    disk.busy_timeout(Duration::from_secs(5)).unwrap();
    disk.execute_batch("BEGIN IMMEDIATE").unwrap();
    let answers: Vec<_> = thread::scope(|scope| {
        let senders: Vec<_> = (1..=6)
            .map(|number| {
                scope.spawn({
                    let relay = &relay;
                    move || relay.recall("waiting", number)
                })
            })
            .collect();
        senders
            .into_iter()
            .map(|sender| sender.join().unwrap())
            .collect()
    });
    disk.execute_batch("ROLLBACK").unwrap();
    let reasons: Vec<_> = answers
        .iter()
        .map(|answer| (answer.status, answer.text()))
        .collect();
    let count_of = |reason: &str| {
        reasons
            .iter()
            .filter(|(status, text)| *status == 503 && text.contains(reason))
            .count()
    };
    let refused = count_of("too many callbacks are waiting for a commit");
    assert!(refused >= 4, "{reasons:?}");
    assert_eq!(
        refused + count_of("event was not on disk within 1.9 s"),
        6,
        "{reasons:?}"
    );
    assert_eq!(relay.outcome_count("unavailable"), 6);
    // The callbacks that waited for the disk are written before later ones.
    let mut attempts = 1..;
    rig::until("a callback to be accepted", || {
        let attempt = attempts.next()?;
        relay.recall("after", attempt).is_ok().then_some(())
    });
    let events = relay.stop();
    let groups = events
        .iter()
        .map(|event| event["subject"].as_str().unwrap());
    let groups: Vec<_> = groups.take_while(|group| *group != "after").collect();
    let waited = vec!["waiting"; 6 - refused];
    assert_eq!(groups, [&["before"], &waited[..]].concat());
}

#[test]
fn a_spool_that_fills_is_reported_before_it_is_full() {
    let relay = Setup::new().set("RECALL_SPOOL__MAX_BYTES", "1MiB").start();
    // If nobody reads its output, the sink stops.
    let held = relay.pause_stdout_reader();
    let mut number = 0;
    let mut send = || {
        number += 1;
        relay.post(&recall_query(), large_recall(&format!("g{number}"), 8000))
    };
    while relay.readiness()["spool"]["used_bytes"].as_u64().unwrap() < 950 << 10 {
        assert!(send().is_ok());
    }
    let filling = until("a warning", || relay.log_entry("spool_filling"));
    assert_eq!(filling["level"], "WARN", "{filling}");
    let percent = filling["percent"].as_u64().unwrap();
    assert!((80..100).contains(&percent), "{filling}");
    assert!(filling["full_in_seconds"].as_u64().is_some(), "{filling}");
    assert_eq!(relay.log_entry("callbacks_refused"), None);

    until("the spool to be full", || (!send().is_ok()).then_some(()));
    let refused = until("an error", || relay.log_entry("callbacks_refused"));
    assert_eq!(refused["level"], "ERROR", "{refused}");
    assert_eq!(relay.log_entry("spool_has_space"), None);

    drop(held);
    until("the end", || relay.log_entry("spool_has_space"));
    until("the end", || relay.log_entry("callbacks_accepted"));
    assert!(send().is_ok());
    assert_eq!(relay.log_entries("spool_filling").len(), 1);
    relay.stop();
}

/// The head of a request with a body of this length.
fn head(length: usize) -> Vec<u8> {
    format!(
        "POST /?{} HTTP/1.1\r\nHost: r\r\nContent-Length: {length}\r\n\r\n",
        recall_query()
    )
    .into_bytes()
}

/// Regression: rejected callbacks used the quota of events. With 22 MB of them, a spool of 128 MiB accepted only 1,093
/// events.
#[test]
fn rejected_callbacks_beyond_their_budget_are_dropped() {
    let setup = Setup::new().set("RECALL_SPOOL__MAX_DEAD_LETTER_BYTES", "100KiB");
    // Kafka is unreachable, so nothing is forwarded.
    let relay = setup
        .with("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
        .start();
    let reject = |number: u32| {
        relay.post(
            &recall_query(),
            format!("{number}{}", "\u{1}".repeat(10_000)),
        )
    };
    let answers: Vec<_> = (0..20).map(reject).collect();
    let dropped = answers
        .iter()
        .filter(|answer| answer.text().contains("callback is not stored"));
    let dropped = dropped.count();
    assert!(answers.iter().all(|answer| answer.status == 400));
    // The event of each is about 13,800 bytes long, because its body is in base64.
    assert_eq!(dropped, 13);
    assert!(
        answers[19]
            .text()
            .contains("spool.max_dead_letter_bytes (100KiB)"),
        "{}",
        answers[19].text()
    );
    let label = |outcome: &str| {
        format!(
            r#"recall_callbacks_total{{command="Group.CallbackAfterRecallMsg",outcome="{outcome}"}}"#
        )
    };
    assert_eq!(relay.metric(&label("rejected")), "7");
    assert_eq!(relay.metric(&label("dropped")), "13");
    let lost = until("an ERROR", || relay.log_entry("recalls_not_accepted"));
    assert_eq!(
        (&lost["level"], &lost["outcome"]),
        (&"ERROR".into(), &"dropped".into())
    );
    assert_eq!(
        relay.readiness()["recalls_not_accepted_last_minute"]["dropped"],
        13
    );
    assert!(relay.recall("g", 1).is_ok());
    assert_eq!(relay.readiness()["ready"], true);
    relay.kill();
}
