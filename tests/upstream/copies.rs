//! Copies of recalls.

use super::*;

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
    assert_eq!(received[1].header("x-forwarded-host"), ["localhost"]);
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
