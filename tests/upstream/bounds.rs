//! Time, size and memory of an exchange.

use super::*;

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
    let left = format!(r#"recall_callbacks_total{{command="{command}",outcome="not_handed_on"}}"#);
    until("the client to be gone", || {
        (relay.metric(&left) == "1").then_some(())
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
