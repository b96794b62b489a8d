//! Many callbacks of both kinds, while the backend dies and returns.

use super::*;

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
