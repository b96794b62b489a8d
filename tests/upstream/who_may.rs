//! Who may reach the backend.

use super::*;

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
