//! Recalls that are not accepted are reported, whatever the cause: the vendor does not send them again.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::time::Duration;

use nix::sys::signal::Signal;
use recall_relay::vendor::CallbackKind;
use rig::{APP, Connection, Faults, Relay, Setup, recall, recall_query, until};

/// A way to lose a recall.
struct Loss {
    outcome: &'static str,
    /// A part of the line that says what to do.
    advice: &'static str,
    settings: &'static [(&'static str, &'static str)],
    /// Whether the cause is the relay's own: then each line is an ERROR, although recalls are accepted.
    is_own: bool,
    /// How many recalls are sent.
    recalls: u64,
    /// Sends the recall of this number; returns the status of the answer, if there is one.
    send: fn(&Relay, u64) -> Option<u16>,
}

const LOSSES: [Loss; 12] = [
    Loss {
        outcome: "refused",
        advice: "set auth.tokens",
        settings: &[("RECALL_AUTH__TOKENS", "changed")],
        is_own: false,
        recalls: 20,
        send: |relay, number| {
            let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
            let query = CallbackKind::Group.query(APP, Some(("old", now)));
            Some(relay.post(&query, recall("g", number)).status)
        },
    },
    Loss {
        outcome: "refused",
        advice: "add the application to sdk_app_ids",
        settings: &[("RECALL_SDK_APP_IDS", "7")],
        is_own: false,
        recalls: 20,
        send: |relay, number| Some(relay.recall("g", number).status),
    },
    Loss {
        outcome: "refused",
        advice: "auth.allowed_sources",
        settings: &[("RECALL_AUTH__ALLOWED_SOURCES", "203.0.113.0/24")],
        is_own: false,
        recalls: 20,
        send: |relay, number| Some(relay.recall("g", number).status),
    },
    Loss {
        outcome: "not_found",
        advice: "set http.path",
        settings: &[("RECALL_HTTP__PATH", "/im")],
        is_own: false,
        recalls: 20,
        send: |relay, number| Some(relay.recall("g", number).status),
    },
    Loss {
        outcome: "wrong_method",
        advice: "POST",
        settings: &[],
        is_own: false,
        recalls: 20,
        send: |relay, number| Some(raw(relay, "PUT", "1.1", &recall("g", number))),
    },
    Loss {
        outcome: "no_length",
        advice: "Content-Length",
        settings: &[],
        is_own: false,
        recalls: 20,
        send: |relay, _| Some(raw(relay, "POST", "1.0", "")),
    },
    Loss {
        outcome: "too_large",
        advice: "raise http.max_body_bytes",
        settings: &[("RECALL_HTTP__MAX_BODY_BYTES", "100")],
        is_own: false,
        recalls: 20,
        send: |relay, number| Some(relay.recall("g", number).status),
    },
    Loss {
        outcome: "too_slow",
        advice: "http.read_timeout",
        settings: &[("RECALL_HTTP__READ_TIMEOUT", "100ms")],
        is_own: false,
        recalls: 3,
        send: |relay, _| Some(raw(relay, "POST", "1.1", "{")),
    },
    Loss {
        outcome: "dropped",
        advice: "spool.max_dead_letter_bytes",
        settings: &[("RECALL_SPOOL__MAX_DEAD_LETTER_BYTES", "10")],
        is_own: true,
        recalls: 20,
        send: |relay, number| Some(relay.post(&recall_query(), format!("{{{number}")).status),
    },
    Loss {
        outcome: "unavailable",
        advice: "use a faster disk",
        settings: &[],
        is_own: true,
        recalls: 2,
        send: |relay, number| Some(relay.recall("g", number).status),
    },
    Loss {
        outcome: "abandoned",
        advice: "the vendor waits 2 s",
        settings: &[],
        is_own: true,
        recalls: 3,
        send: |relay, number| {
            let body = recall("g", number);
            let target = format!("/?{}", recall_query());
            let mut connection = Connection::open(relay.callbacks).unwrap();
            let head = format!(
                "POST {target} HTTP/1.1\r\nHost: relay\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            connection
                .send(&[head.as_bytes(), body.as_bytes()].concat())
                .unwrap();
            std::thread::park_timeout(Duration::from_millis(300));
            None
        },
    },
    Loss {
        outcome: "broken",
        advice: "check the network",
        settings: &[],
        is_own: false,
        recalls: 3,
        send: |relay, _| {
            let mut connection = Connection::open(relay.callbacks).unwrap();
            let target = format!("/?{}", recall_query());
            let head =
                format!("POST {target} HTTP/1.1\r\nHost: relay\r\nContent-Length: 9\r\n\r\n{{");
            connection.send(head.as_bytes()).unwrap();
            None
        },
    },
];

/// Sends a request whose head announces one byte more than its body, or nothing over HTTP/1.0.
fn raw(relay: &Relay, method: &str, version: &str, body: &str) -> u16 {
    let length = match version {
        "1.0" => String::new(),
        _ if body == "{" => format!("Content-Length: {}\r\n", body.len() + 1),
        _ => format!("Content-Length: {}\r\n", body.len()),
    };
    let mut connection = Connection::open(relay.callbacks).unwrap();
    let head = format!(
        "{method} /?{} HTTP/{version}\r\nHost: relay\r\n{length}\r\n",
        recall_query()
    );
    connection
        .send(&[head.as_bytes(), body.as_bytes()].concat())
        .unwrap();
    connection.answer().unwrap().status
}

#[test]
fn recalls_that_are_not_accepted_are_reported() {
    for loss in LOSSES {
        let faults = Faults::new();
        let mut setup = Setup::new();
        for (name, value) in loss.settings {
            setup = setup.with(name, value);
        }
        let is_slow = ["unavailable", "abandoned"].contains(&loss.outcome);
        if is_slow {
            setup = setup.with_faults(&faults);
        }
        let mut relay = setup.start();
        if loss.is_own {
            assert!(relay.recall("accepted", 1).is_ok());
        }
        if is_slow {
            faults.slow_syncs(Duration::from_secs(3));
        }
        for number in 1..=loss.recalls {
            if let Some(status) = (loss.send)(&relay, number) {
                assert!((400..=503).contains(&status), "{}: {status}", loss.outcome);
            }
        }
        let lines = |relay: &Relay| relay.log_entries("recalls_not_accepted");
        until(loss.outcome, || (!lines(&relay).is_empty()).then_some(()));
        let expected = serde_json::json!({loss.outcome: loss.recalls});
        until(loss.outcome, || {
            (relay.readiness()["recalls_not_accepted_last_minute"] == expected).then_some(())
        });
        let command = "Group.CallbackAfterRecallMsg";
        let outcome = loss.outcome;
        let metric =
            format!(r#"recall_callbacks_total{{command="{command}",outcome="{outcome}"}}"#);
        assert_eq!(relay.metric(&metric), loss.recalls.to_string());
        faults.heal();

        // Only the first has a line of its own; the others are in the line of the end.
        assert_eq!(lines(&relay).len(), 1, "{}", loss.outcome);
        relay.signal(Signal::SIGTERM);
        relay.wait();
        relay.log_after_exit();
        let lines = lines(&relay);
        let recalls: Vec<_> = lines
            .iter()
            .map(|line| line["recalls"].as_u64().unwrap())
            .collect();
        assert_eq!(recalls, [1, loss.recalls - 1], "{}", loss.outcome);
        for line in lines {
            assert_eq!(
                (&line["level"], &line["outcome"]),
                (&"ERROR".into(), &loss.outcome.into())
            );
            let message = line["message"].as_str().unwrap();
            assert!(message.contains(loss.advice), "{message}");
        }
    }
}

#[test]
fn a_refused_recall_beside_accepted_ones_is_a_warning() {
    let relay = Setup::new().start();
    assert!(relay.recall("g", 1).is_ok());
    let query = "SdkAppid=8&CallbackCommand=Group.CallbackAfterRecallMsg";
    assert_eq!(relay.post(query, recall("g", 2)).status, 403);
    let line = until("the line", || relay.log_entry("recalls_not_accepted"));
    assert_eq!(line["level"], "WARN");
    relay.stop();
}

#[test]
fn what_is_no_recall_is_not_reported() {
    let mut relay = Setup::new()
        .set("RECALL_HTTP__MAX_BODY_BYTES", "100")
        .start();
    let other = "SdkAppid=1400000001&CallbackCommand=Group.CallbackBeforeSendMsg";
    assert_eq!(relay.post(other, "x".repeat(200)).status, 413);
    assert_eq!(
        rig::request(relay.callbacks, "GET", "/robots.txt", b"").status,
        404
    );
    // A recall that cannot be parsed is stored as a dead letter: nothing is lost.
    assert_eq!(relay.post(&recall_query(), "{").status, 400);
    let readiness = relay.readiness();
    assert_eq!(
        readiness["recalls_not_accepted_last_minute"],
        serde_json::json!({})
    );
    relay.signal(Signal::SIGTERM);
    relay.wait();
    relay.log_after_exit();
    assert!(relay.log_entry("recalls_not_accepted").is_none());
}

/// At the start, then once for each documented command, and once for all others together.
#[test]
fn commands_that_nobody_gets_are_reported() {
    let mut relay = Setup::new().set("RECALL_AUTH__TOKENS", "token").start();
    assert_eq!(relay.log_entries("no_upstream").len(), 1);
    let before = "Group.CallbackBeforeSendMsg";
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let signed = CallbackKind::Other.query(APP, Some(("token", now)));
    for query in [
        &format!("CallbackCommand={before}"),
        &signed,
        "CallbackCommand=State.StateChange",
        "CallbackCommand=New.Command",
        "CallbackCommand=Newer.Command",
        "",
    ] {
        for _ in 0..2 {
            assert!(relay.post(query, "{}").is_ok(), "{query}");
        }
    }
    relay.signal(Signal::SIGTERM);
    relay.wait();
    relay.log_after_exit();
    let reported = relay.log_entries("command_ignored");
    let commands: Vec<_> = reported
        .iter()
        .map(|line| line["command"].as_str().unwrap())
        .collect();
    assert_eq!(commands, [before, "State.StateChange", "other"]);
    assert!(reported.iter().all(|line| line["level"] == "WARN"));
}
