//! What the README shows is what the program does.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod rig;

use std::collections::BTreeMap;

use rig::Setup;

/// The README's text between two marks.
#[track_caller]
fn cut(begin: &str, end: &str) -> String {
    cut_from("README.md", begin, end)
}

#[track_caller]
fn cut_from(file: &str, begin: &str, end: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once(begin).expect(begin);
    rest.split_once(end).expect(end).0.to_owned()
}

#[test]
fn the_sample_callback_becomes_the_sample_event() {
    let query = cut("curl 'http://127.0.0.1:8080/?", "'");
    let body = cut("--data '", "'\n");
    let answer = cut("The answer:\n\n```json\n", "\n");
    let event = cut(
        "The event, on the relay's standard output",
        "\n```\n\nSend it",
    );
    let event = event.lines().last().unwrap();

    let relay = Setup::new().start();
    for _ in 0..2 {
        let answered = relay.post(&query, &body);
        assert_eq!((answered.status, answered.text()), (200, answer.as_str()));
    }
    let printed = relay.lines_until_stopped();
    assert_eq!(printed.len(), 1, "{printed:?}");
    let (before, after) = around_received_at(&printed[0]);
    assert_eq!((before, after), around_received_at(event));
}

/// What stands before and after the one thing that differs each time.
#[track_caller]
fn around_received_at(event: &str) -> (&str, &str) {
    let (before, rest) = event.split_once(r#""received_at":""#).expect(event);
    (before, rest.split_once('"').expect(event).1)
}

#[test]
fn send_is_understood_by_the_relay() {
    let relay = Setup::new()
        .set("RECALL_AUTH__TOKENS", "old,hunter2")
        .start();
    let url = format!("http://{}/", relay.callbacks);
    let send = |token: &str| {
        let command = ["send", "--command", "all", "--count", "6", "--url", &url];
        Setup::new().run(&[&command[..], &["--token", token]].concat())
    };
    let (code, stdout, stderr) = send("other");
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert!(stderr.contains("6 of 6 callbacks"), "{stderr}");
    let (code, stdout, stderr) = send("hunter2");
    assert_eq!(code, 0, "{stdout}{stderr}");

    let mut types = BTreeMap::new();
    for event in relay.stop() {
        let name = event["type"].as_str().unwrap().to_owned();
        *types.entry(name).or_insert(0) += 1;
    }
    let expected = [
        ("com.tencent.im.c2c.message.recalled", 2),
        ("com.tencent.im.group.message.recalled", 2),
        ("com.tencent.im.official_account.message.recalled", 2),
    ];
    assert_eq!(
        types,
        expected
            .map(|(name, count)| (name.to_owned(), count))
            .into()
    );
}

#[test]
fn the_shipped_deployments_wait_for_the_longest_stop() {
    let seconds = |text: String| text.parse::<u64>().unwrap();
    let drain = seconds(cut("| `drain_timeout` | `", "s`"));
    let closing = seconds(cut("`http.stop_delay` + `drain_timeout` + ", " seconds"));
    let kubernetes = "deploy/kubernetes.yaml";
    let delay = seconds(cut_from(
        kubernetes,
        "RECALL_HTTP__STOP_DELAY, value: ",
        "s}",
    ));
    for (file, begin, end, delay) in [
        (kubernetes, "terminationGracePeriodSeconds: ", "\n", delay),
        ("deploy/recall-relay.service", "TimeoutStopSec=", "s\n", 0),
        ("docker-compose.yml", "stop_grace_period: ", "s\n", 0),
    ] {
        let waits = seconds(cut_from(file, begin, end));
        assert!(waits > delay + drain + closing, "{file}: {waits} s");
    }
}
