//! The form of the lines, the settings, and the shape of the tokens.

use std::fs;

use serde_json::json;

use super::check;
use super::rig::Setup;

#[test]
fn the_form_of_a_line_is_frozen() {
    let checked = check(&Setup::new(), &[]);
    checked.assert_no_failure();
    let line = checked.of("tokens", "auth.tokens")[0];
    assert_eq!(
        *line,
        json!({
            "area": "tokens", "subject": "auth.tokens", "result": "warning",
            "text": "none is set: signatures are not checked, and anyone who reaches the listener can send recalls",
            "action": "set auth.tokens to the console's token",
        })
    );
    let line = checked.of("callback_url", "url")[0];
    assert_eq!(
        *line,
        json!({
            "area": "callback_url", "subject": "url", "result": "untried",
            "text": "pass the callback URL from the console as --url",
        })
    );
    let mut areas: Vec<&str> = checked
        .lines
        .iter()
        .map(|line| line["area"].as_str().unwrap())
        .collect();
    areas.dedup();
    assert_eq!(
        areas,
        [
            "configuration",
            "relay",
            "spool",
            "clock",
            "certificates",
            "tokens",
            "upstream",
            "callback_url"
        ]
    );
    let results = ["ok", "warning", "failed", "untried"];
    for line in &checked.lines {
        assert!(
            results.contains(&line["result"].as_str().unwrap()),
            "{line}"
        );
    }
}

#[test]
fn people_read_the_same_lines_and_the_counts() {
    let (code, stdout, stderr) = Setup::new()
        .set("RECALL_SPOOL__RESERVE", "1EiB")
        .run(&["check"]);
    assert_eq!((code, stderr.as_str()), (1, ""), "{stdout}");
    let failed = "failed   spool         space: the disk is full, and callbacks are refused";
    assert!(stdout.contains(failed), "{stdout}");
    let action = "\n                       free disk space, or lower spool.reserve\n";
    assert!(stdout.contains(action), "{stdout}");
    assert!(
        stdout.lines().last().unwrap().starts_with("1 failed, "),
        "{stdout}"
    );
    assert!(!stdout.contains('\u{1b}'), "{stdout}");
}

#[test]
fn each_problem_of_the_settings_is_a_line_and_the_exit_code_is_78() {
    let wrong = Setup::new()
        .set("RECALL_KAFKA__TOPIC", "a b")
        .set("RECALL_SPOOL__RESERVE", "much");
    let checked = check(&wrong, &[]);
    assert_eq!((checked.code, checked.failed()), (78, 2), "{checked}");
    checked.assert(
        "configuration",
        "settings",
        "failed",
        "spool.reserve (from RECALL_SPOOL__RESERVE)",
    );
    checked.assert("configuration", "settings", "failed", "kafka.topic");
    checked.assert(
        "configuration",
        "other areas",
        "untried",
        "nothing else was tried",
    );

    for (name, value, text) in [
        (
            "RECALL_AUTH__TOKENS",
            "",
            "auth.tokens (from RECALL_AUTH__TOKENS): is empty",
        ),
        (
            "RECALL_AUTH__TOKENS",
            "7=secret-token",
            "token 1 is bound to an application that is not in sdk_app_ids",
        ),
        ("RECALL_FOO", "1", "is not a setting"),
    ] {
        let checked = check(&Setup::new().set(name, value), &[]);
        assert_eq!(checked.code, 78, "{checked}");
        checked.assert("configuration", "settings", "failed", text);
        assert!(!checked.to_string().contains("secret-token"), "{checked}");
    }
}

#[test]
fn settings_and_their_sources_are_counted() {
    let setup = Setup::new();
    let file = setup.folder().join("relay.toml");
    fs::write(&file, "drain_timeout = \"3s\"\n").unwrap();
    let checked = check(&setup, &["--config", file.to_str().unwrap()]);
    checked.assert(
        "configuration",
        "settings",
        "ok",
        "relay.toml and the environment",
    );
    let nowhere = "no broker is configured";
    checked.assert("configuration", "sinks", "warning", nowhere);
    let setup = setup.set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1");
    check(&setup, &[]).assert("configuration", "sinks", "ok", "published to kafka");
}

#[test]
fn odd_tokens_are_warnings_that_never_show_them() {
    let app = super::rig::APP;
    let tokens = format!("hunter2,\"hunter22hunter,hunter2 hunter2,hunter22hunter22,{app}=hunt");
    let checked = check(&Setup::new().set("RECALL_AUTH__TOKENS", &tokens), &[]);
    checked.assert_no_failure();
    checked.assert("tokens", "token 1", "warning", "fewer than 8 characters");
    checked.assert(
        "tokens",
        "token 2",
        "warning",
        "begins or ends with a quote",
    );
    checked.assert("tokens", "token 3", "warning", "contains white space");
    checked.assert("tokens", "token 5", "warning", "fewer than 8 characters");
    assert_eq!(checked.of("tokens", "").len(), 4, "{checked}");
    assert!(!checked.to_string().contains("hunt"), "{checked}");

    let checked = check(
        &Setup::new().set("RECALL_AUTH__TOKENS", "hunter22hunter22"),
        &[],
    );
    checked.assert("tokens", "auth.tokens", "ok", "1 set");
}
