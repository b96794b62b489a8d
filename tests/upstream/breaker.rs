//! The breaker.

use super::*;

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
