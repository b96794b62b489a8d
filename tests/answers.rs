//! Every request with a readable head gets an answer in the vendor's format.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod rig;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use recall_relay::vendor::{CallbackKind, OtherCommand};
use rig::{
    APP, Answer, Backend, Connection, Relay, Reply, Setup, recall, recall_query, request, until,
};
use serde_json::Value;

#[track_caller]
fn assert_fails(answer: &Answer, status: u16, reason: &str) {
    let body = serde_json::json!({"ActionStatus": "FAIL", "ErrorInfo": reason, "ErrorCode": 1});
    let got: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, &got), (status, &body));
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[test]
fn a_repeated_recall_becomes_one_event() {
    let relay = Setup::new().start();
    let answer = relay.recall("g", 1);
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(relay.recall("g", 1).is_ok());
    assert!(relay.recall("g", 2).is_ok());
    let outcomes = ["accepted", "repeated"].map(|outcome| relay.outcome_count(outcome));
    assert_eq!(outcomes, [2, 1]);
    let commits = relay.metric("recall_spool_commit_seconds_count");
    assert_eq!(commits, "2", "a repeated recall needs no commit");
    let events = relay.stop();
    let seqs: Vec<_> = events
        .iter()
        .map(|event| &event["data"]["messages"][0]["seq"])
        .collect();
    assert_eq!(seqs, [1, 2]);
}

#[test]
fn only_configured_applications_are_accepted() {
    let relay = Setup::new()
        .set("RECALL_SDK_APP_IDS", "1400000001, 7")
        .start();
    let query =
        |app: &str| format!("sdkAPPID={app}&callbackcommand=Group.CallbackAfterRecallMsg&x=y");
    assert!(relay.post(&query("1400000001"), recall("a", 1)).is_ok());
    assert!(relay.post(&query("7"), recall("a", 1)).is_ok());
    assert_fails(
        &relay.post(&query("8"), recall("a", 1)),
        403,
        "SdkAppid is not in sdk_app_ids",
    );
    let missing = relay.post(
        "CallbackCommand=Group.CallbackAfterRecallMsg",
        recall("a", 1),
    );
    assert_fails(&missing, 403, "SdkAppid is missing");
    let sources: Vec<_> = relay
        .events(2)
        .iter()
        .map(|event| event["source"].clone())
        .collect();
    assert_eq!(sources, ["/tencent-im/1400000001", "/tencent-im/7"]);
    assert_eq!(relay.stop().len(), 2);
}

#[test]
fn only_signed_recalls_are_accepted() {
    let relay = Setup::new()
        .set("RECALL_AUTH__TOKENS", "old,test-token")
        .start();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let signed = |token: &str, time: u64| {
        let query = CallbackKind::Group.query(APP, Some((token, time)));
        relay.post(&query, recall(token, time))
    };
    assert!(signed("test-token", now).is_ok());
    assert!(signed("old", now).is_ok());
    assert_fails(
        &signed("other", now),
        403,
        "Sign matches no token of auth.tokens",
    );
    assert_fails(
        &signed("old", now - 100),
        403,
        "RequestTime is not within auth.max_skew of the relay's clock",
    );
    assert_fails(&relay.recall("g", 1), 403, "Sign or RequestTime is missing");

    // Authentication applies only to recalls: any other callback is answered OK, and the bad signature is counted.
    let other = "SdkAppid=9&CallbackCommand=Group.CallbackBeforeSendMsg";
    assert!(relay.post(other, r#"{"GroupId":"g"}"#).is_ok());
    let counted = r#"recall_callback_bad_signatures_total{command="Group.CallbackBeforeSendMsg"}"#;
    assert_eq!(relay.metric(counted), "1");
    for token in 1..=2 {
        let counted = format!(r#"recall_callback_signatures_total{{token="{token}"}}"#);
        assert_eq!(relay.metric(&counted), "1");
    }
    assert_eq!(relay.stop().len(), 2);
}

#[test]
fn only_allowed_sources_are_accepted() {
    let relay = Setup::new()
        .set("RECALL_AUTH__ALLOWED_SOURCES", "203.0.113.0/24")
        .set("RECALL_AUTH__TRUSTED_PROXIES", "127.0.0.1")
        .start();
    assert_fails(
        &relay.recall("g", 1),
        403,
        "source address is not in auth.allowed_sources",
    );
    let from = |source: &str| {
        let body = recall("g", 1);
        let mut connection = Connection::open(relay.callbacks).unwrap();
        let head = format!(
            "POST /?{} HTTP/1.1\r\nHost: r\r\nX-Forwarded-For: {source}\r\nContent-Length: {}\r\n\r\n{body}",
            recall_query(),
            body.len()
        );
        connection.send(head.as_bytes()).unwrap();
        connection.answer().unwrap()
    };
    assert_fails(
        &from("198.51.100.1"),
        403,
        "source address is not in auth.allowed_sources",
    );
    assert!(from("203.0.113.7").is_ok());
    assert_eq!(relay.stop().len(), 1);
}

#[test]
fn other_commands_and_probes_are_answered_ok() {
    let relay = Setup::new().start();
    let recall = "CallbackCommand=Group.CallbackAfterRecallMsg";
    for (query, body) in [
        ("", ""),
        ("", "not json"),
        (
            "CallbackCommand=State.StateChange",
            r#"{"CallbackCommand":"State.StateChange"}"#,
        ),
        (
            "SdkAppid=9",
            r#"{"CallbackCommand":"Alert.RequestOverLimit","Limit":200}"#,
        ),
        ("", r#"{"Events":[{}]}"#),
        (recall, ""),
        (recall, "{}"),
        (recall, r#"{"hello":"world"}"#),
    ] {
        let answer = relay.post(query, body);
        assert!(answer.is_ok(), "{query} {body}: {answer:?}");
    }
    assert_eq!(
        relay.metric(r#"recall_callbacks_total{command="State.StateChange",outcome="ignored"}"#),
        "1"
    );
    assert_eq!(relay.outcome_count("probe"), 3);
    assert_eq!(relay.stop().len(), 0);
}

#[test]
fn wrong_path_and_method_are_refused() {
    let relay = Setup::new().set("RECALL_HTTP__PATH", "/im").start();
    assert_fails(&relay.recall("g", 1), 404, "path is not http.path");
    let get = request(relay.callbacks, "GET", "/im?x=y", b"");
    assert_fails(&get, 405, "method is not POST");
    assert_eq!(get.header("allow"), Some("POST"));
    let post = request(
        relay.callbacks,
        "POST",
        &format!("/im?{}", recall_query()),
        recall("g", 1).as_bytes(),
    );
    assert!(post.is_ok());
}

#[test]
fn an_unparsable_recall_is_kept_whole_as_dead_letter() {
    let relay = Setup::new().start();
    let query = format!("{}&Sign=ff&RequestTime=1", recall_query());
    let answer = relay.post(&query, r#"{"GroupId":"g","MsgSeqList":[]}"#);
    assert_fails(&answer, 400, "MsgSeqList is empty");
    let answer = relay.post(&query, b"\xff{");
    assert_eq!(answer.status, 400);
    let events = relay.stop();
    assert_eq!(events[0]["type"], "com.tencent.im.callback.rejected");
    assert_eq!(events[0]["data"]["reason"], "messages");
    assert_eq!(
        events[0]["data"]["body"],
        r#"{"GroupId":"g","MsgSeqList":[]}"#
    );
    assert_eq!(events[0]["data"]["query"], recall_query());
    assert_eq!(events[1]["data"]["body_base64"], "/3s=");
    assert_eq!(events.len(), 2);
}

#[test]
fn a_body_beyond_the_limit_is_answered_413() {
    let relay = Setup::new()
        .set("RECALL_HTTP__MAX_BODY_BYTES", "1KiB")
        .start();
    let padded = |length: usize| {
        let body = recall("g", 1);
        format!("{body}{}", " ".repeat(length - body.len()))
    };
    assert!(relay.post(&recall_query(), padded(1024)).is_ok());
    let reason = "body is larger than http.max_body_bytes";
    assert_fails(&relay.post(&recall_query(), padded(1025)), 413, reason);

    let mut chunked = Connection::open(relay.callbacks).unwrap();
    let head = format!(
        "POST /?{} HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n",
        recall_query()
    );
    chunked.send(head.as_bytes()).unwrap();
    chunked
        .send(format!("{:x}\r\n{}\r\n0\r\n\r\n", 1025, padded(1025)).as_bytes())
        .unwrap();
    assert_fails(&chunked.answer().unwrap(), 413, reason);
}

#[test]
fn a_full_spool_is_answered_503_and_loses_nothing() {
    let setup = Setup::new().set("RECALL_SPOOL__MAX_BYTES", "200KiB");
    // Kafka is unreachable, so no event is forwarded.
    let setup = setup.set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1");
    let relay = setup.start();
    let mut kept = 0;
    let refused = until("a full spool", || {
        let answer = relay.recall("g", kept + 1);
        if answer.is_ok() {
            kept += 1;
            return None;
        }
        Some(answer)
    });
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(
        refused.text().contains("spool.max_bytes"),
        "{}",
        refused.text()
    );
    assert!(kept > 50, "{kept}");
    assert_eq!(relay.admin("/readyz").status, 503);
    assert_eq!(relay.readiness()["spool"]["events"], kept);
    relay.kill();
}

#[test]
fn a_relay_on_a_full_spool_is_not_reported_as_ready() {
    let setup = Setup::new().set("RECALL_SPOOL__MAX_BYTES", "200KiB");
    let kafka_is_down = setup.with("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1");
    let relay = kafka_is_down.start();
    assert!(relay.log_entry("ready").is_some());
    let mut number = 0;
    until("a full spool", || {
        number += 1;
        (relay.recall("g", number).status == 503).then_some(())
    });
    relay.kill();

    let relay = kafka_is_down.start();
    let not_ready = relay.log_entry("not_ready").unwrap();
    assert_eq!(not_ready["level"], "ERROR", "{not_ready}");
    let reason = not_ready["reason"].as_str().unwrap();
    assert!(reason.contains("spool.max_bytes"), "{not_ready}");
    assert_eq!(relay.admin("/readyz").status, 503);
    assert_eq!(relay.log_entry("ready"), None);
    relay.kill();

    // Without Kafka, the events of this setup are printed, and then purged.
    let (code, _, stderr) = setup.run(&["spool", "forget", "kafka"]);
    assert_eq!(code, 0, "{stderr}");
    let relay = setup.start();
    until("ready", || relay.log_entry("ready"));
    assert_eq!(relay.admin("/readyz").status, 200);
    relay.stop();
}

#[test]
fn http2_and_garbage_are_closed_or_answered_400() {
    let relay = Setup::new().start();
    // A client with prior knowledge sends the preface and an empty SETTINGS frame.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let half = b"PRI * HTTP/2.0\r\n\r\n";
    let garbage = b"\x16\x03\x01\r\n\r\n";
    for listener in [relay.callbacks, relay.admin] {
        for bytes in [&preface[..], half, garbage] {
            let mut stream = TcpStream::connect(listener).unwrap();
            // Shorter than every timeout of the relay, so no timeout closes the connection.
            let timeout = Duration::from_secs(8);
            stream.set_read_timeout(Some(timeout)).unwrap();
            stream.write_all(bytes).unwrap();
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Err(error) if error.kind() != ErrorKind::ConnectionReset => {
                    panic!("{listener}, {bytes:?}: {error}")
                }
                _ => {}
            }
            let answer = String::from_utf8_lossy(&answer);
            assert!(
                answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
                "{listener}, {bytes:?}: {answer}"
            );
        }
    }
    assert!(relay.recall("g", 1).is_ok());
    assert_eq!(relay.admin("/readyz").status, 200);
    assert_eq!(relay.stop().len(), 1);
}

/// Runs `send` with these arguments; returns its exit code and its report.
fn send(relay: &Relay, arguments: &[&str]) -> (i32, Value) {
    let url = format!("http://{}/", relay.callbacks);
    let fixed = ["send", "--json", "--url", &url];
    let (code, report, stderr) = Setup::new().run(&[&fixed, arguments].concat());
    let report = serde_json::from_str(&report).unwrap_or_else(|_| panic!("{report}{stderr}"));
    (code, report)
}

#[test]
fn every_documented_command_of_send_is_answered_ok() {
    let relay = Setup::new().start();
    let mut sent = 0;
    for command in OtherCommand::all() {
        let name = command.name();
        let (code, report) = send(&relay, &["--command", name]);
        assert_eq!(
            (code, &report["outcomes"]["ok"]),
            (0, &1.into()),
            "{report}"
        );
        let ignored = format!(r#"recall_callbacks_total{{command="{name}",outcome="ignored"}}"#);
        assert_eq!(relay.metric(&ignored), "1", "{name}");
        sent += 1;
    }
    assert!(sent > 40, "{sent}");
    for recall in [
        CallbackKind::Group,
        CallbackKind::C2c,
        CallbackKind::OfficialAccount,
    ] {
        let (code, report) = send(&relay, &["--command", recall.command()]);
        assert_eq!(code, 0, "{report}");
    }
    let (code, report) = send(&relay, &["--command", "probe"]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(relay.outcome_count("probe"), 1);
    assert_eq!(relay.stop().len(), 3);
}

#[test]
fn send_accepts_what_a_backend_says_but_not_its_absence() {
    let backend = Backend::start();
    let rejection = r#"{"ActionStatus":"OK","ErrorInfo":"rude","ErrorCode":10100}"#;
    backend.reply(Reply::json(rejection));
    let relay = Setup::new()
        .set(
            "RECALL_UPSTREAM__URL",
            &format!("http://{}/", backend.address()),
        )
        .start();
    let before = ["--command", "before", "--count", "9"];
    let (code, report) = send(&relay, &[&before[..], &["--upstream"]].concat());
    assert_eq!(code, 0, "{report}");
    let expected = serde_json::json!([{"answer": "200 OK/10100 rude", "count": 9}]);
    assert_eq!(report["backend_answers"], expected);
    let commands: Vec<_> = OtherCommand::all()
        .filter(|command| command.asks_permission())
        .map(OtherCommand::name)
        .collect();
    let received = backend.received();
    let received: Vec<Value> = received
        .iter()
        .map(|request| serde_json::from_slice(&request.body).unwrap())
        .collect();
    let received: Vec<_> = received
        .iter()
        .map(|body| body["CallbackCommand"].as_str().unwrap())
        .collect();
    assert_eq!(received, commands);

    // Without `--upstream`, nothing but OK is right. A recall is answered by the relay.
    let (code, report) = send(&relay, &before);
    assert_eq!((code, &report["outcomes"]["not_ok"]), (1, &9.into()));
    assert_eq!(report["failures"][0]["reason"], "200 OK/10100 rude");
    let (code, report) = send(&relay, &["--upstream"]);
    assert_eq!(
        (code, &report["backend_answers"]),
        (0, &serde_json::json!([]))
    );

    backend.reply(Reply::raw("").then_close());
    let (code, report) = send(&relay, &["--command", "other", "--upstream"]);
    assert_eq!((code, &report["outcomes"]["not_ok"]), (1, &1.into()));
    let reason = report["failures"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("502 FAIL/1 "), "{reason}");
    relay.stop();
}
