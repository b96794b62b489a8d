//! Nothing that the relay receives or is configured with forges a line of its log, or controls the terminal that shows
//! it. `telemetry::escape` tests every kind of value.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use rig::{APP, Connection, Relay, Setup, recall, until};

/// Would be a line of its own, if it were written as it is; then sequences that control a terminal.
const HOSTILE: &str =
    "x\r\n2022-12-09T08:26:54Z ERROR forged\u{1b}]0;t\u{7}\u{1b}[2J\u{9b}2J\u{2028}\u{202e}\u{85}";

/// Sends the text in each part of a callback from which it may reach the log.
fn send_hostile(relay: &Relay) {
    let encoded: String = form_urlencoded::byte_serialize(HOSTILE.as_bytes()).collect();
    let command = "Group.CallbackAfterRecallMsg";
    let body = |command: &str| {
        let mut body: serde_json::Value = serde_json::from_str(&recall("g", 1)).unwrap();
        body["CallbackCommand"] = command.into();
        body.to_string()
    };
    let query = |command: &str| format!("SdkAppid={APP}&CallbackCommand={command}");
    assert_eq!(relay.post(&query(command), body(HOSTILE)).status, 400);
    assert_eq!(relay.post(&query(&encoded), body(command)).status, 400);
    assert!(relay.post(&query(&encoded), body(HOSTILE)).is_ok());
    for id in [HOSTILE, "\u{9b}2J"] {
        let application = form_urlencoded::byte_serialize(id.as_bytes());
        let query = format!("SdkAppid={}", application.collect::<String>());
        assert_eq!(relay.post(&query, body(command)).status, 403);
    }
    let body = body(command);
    let head = format!(
        "POST /?{} HTTP/1.1\r\nHost: \u{9b}\r\nX-Forwarded-For: \u{9b}2J\u{202e}\r\nContent-Length: {}\r\n\r\n",
        query(command),
        body.len()
    );
    let mut connection = Connection::open(relay.callbacks).unwrap();
    connection.send(format!("{head}{body}").as_bytes()).unwrap();
    assert_eq!(connection.answer().unwrap().status, 403);
}

fn setup() -> Setup {
    Setup::new()
        .set("RECALL_LOG__FILTER", "info,recall_relay=debug")
        .set("RECALL_AUTH__TRUSTED_PROXIES", "127.0.0.0/8")
        .set("RECALL_AUTH__ALLOWED_SOURCES", "127.0.0.0/8")
}

/// Asserts that each line has a time and a level of its own, and no control character but the colours of the log.
#[track_caller]
fn assert_is_clean(log: &str) {
    for line in log.lines() {
        let mut line = line.to_owned();
        for colour in ["[0m", "[2m", "[31m", "[32m", "[33m", "[34m"] {
            line = line.replace(&format!("\u{1b}{colour}"), "");
        }
        let has_control = line
            .contains(|char: char| char.is_control() || matches!(char, '\u{2028}' | '\u{202e}'));
        assert!(!has_control, "{line:?}");
        let begins_as_line = line.starts_with(r#"{"timestamp":"#)
            || (line.starts_with("20") && line.contains(" recall_relay::"));
        assert!(begins_as_line, "{line:?}");
    }
    // The text arrived in the log at all.
    assert!(log.matches("ERROR forged").count() >= 2, "{log}");
}

#[test]
fn a_callback_cannot_forge_a_line_on_a_terminal() {
    let setup = setup().without("RECALL_LOG__FORMAT");
    let mut relay = setup.launch_on_terminal();
    let address = until("the relay to be ready", || {
        let log = relay.log();
        let (_, ready) = log.split_once("callbacks=")?;
        ready.split_once(' ')?.0.parse().ok()
    });
    relay.callbacks = address;
    send_hostile(&relay);
    relay.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(relay.wait().success());
    let log = relay.log_after_exit();
    assert!(
        log.contains("\u{1b}[32m INFO\u{1b}[0m"),
        "not a terminal: {log}"
    );
    assert_is_clean(&log);
}

#[test]
fn a_callback_cannot_forge_a_line_of_json() {
    let relay = setup().start();
    send_hostile(&relay);
    relay.signal(nix::sys::signal::Signal::SIGTERM);
    let log = relay.log_after_exit();
    assert_is_clean(&log);
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

#[test]
fn a_setting_cannot_forge_a_line() {
    // In TOML, an escape of JSON means the same.
    let quoted = serde_json::to_string(HOSTILE).unwrap();
    for format in ["text", "json"] {
        let setup = Setup::new().set("RECALL_LOG__FORMAT", format);
        let file = setup.folder().join("settings.toml");
        std::fs::write(&file, format!("{quoted} = 1\n[http]\n{quoted} = 2\n")).unwrap();
        let (code, _, log) = setup.with("RECALL_CONFIG", file.to_str().unwrap()).run(&[]);
        assert_eq!(code, 78, "{log}");
        assert_is_clean(&log);
    }
}
