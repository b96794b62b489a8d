//! `/status` as programs read it: docs/reference/status.md describes it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use nix::sys::signal::Signal;
use rcgen::ExtendedKeyUsagePurpose::ServerAuth;
use rig::{Authority, Relay, Setup, shape, until};
use serde_json::{Value, json};

fn status(relay: &Relay) -> Value {
    let answer = relay.admin("/status");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    serde_json::from_slice(&answer.body).unwrap()
}

/// Waits until `look` finds something in the status.
#[track_caller]
fn until_status<T>(relay: &Relay, what: &str, look: impl Fn(&Value) -> Option<T>) -> T {
    until(what, || look(&status(relay)))
}

/// A change here breaks programs that read the document: docs/reference/status.md promises this form.
#[test]
fn the_form_is_frozen() {
    let setup = Setup::new()
        .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
        .set("RECALL_UPSTREAM__URL", "http://127.0.0.1:9");
    let relay = setup.start();
    relay.recalls("g", 1..=3);
    relay.until_sink("kafka", "down");
    let mut status = until_status(&relay, "a sample with callbacks", |status| {
        status["sinks"][0]["oldest_unconfirmed_seconds"].as_f64()?;
        let rates = &status["history"]["callbacks_per_second"]["accepted"];
        (rates.as_array()?.last()?.as_f64()? > 0.0).then(|| status.clone())
    });
    relay.kill();

    // The values of what was measured may be absent in the first sample.
    let history = &mut status["history"];
    for column in ["answer_p50", "answer_p99", "commit_p50", "commit_p99"] {
        let values = history[format!("{column}_seconds")].as_array_mut().unwrap();
        values.retain(|value| !value.is_null());
    }
    // So may the age, if the disk was slow.
    let ages = history["sinks"]["kafka"]["oldest_unconfirmed_seconds"].as_array_mut();
    ages.unwrap().retain(|age| !age.is_null());
    let fields = status["problems"][0]["fields"].as_object_mut().unwrap();
    fields.retain(|name, _| name == "sink");
    let outcomes = status["callbacks"]["total"].as_object_mut().unwrap();
    assert_eq!(outcomes["accepted"], 3);
    assert_eq!(outcomes["unavailable"], 0);
    outcomes.retain(|outcome, _| outcome == "accepted");
    assert_eq!(status["version"], 1);
    let spool = status["spool"].as_object_mut().unwrap();
    spool.remove("full_in_seconds");
    assert_eq!(
        shape(&status),
        json!({
            "version": "integer", "at": "time", "ready": "bool",
            "relay": {"version": "string", "started_at": "time", "uptime_seconds": "integer"},
            "callbacks": {"total": {"accepted": "integer"}, "recalls_not_accepted_last_minute": {}},
            "spool": {
                "events": "integer", "unconfirmed_events": "integer", "at_risk_events": "integer",
                "last_seq": "integer", "used_bytes": "integer",
                "max_bytes": "integer", "capacity_bytes": "integer", "available_bytes": "integer", "percent": "integer",
                "dead_letters": "integer", "unreadable": "integer", "lost": "integer", "lost_at_start": "integer",
                "quarantined": [],
            },
            "sinks": [{
                "sink": "string", "state": "string", "reason": "string", "since": "time", "cursor": "integer",
                "lag": "integer", "oldest_unconfirmed_seconds": "number", "confirmed": "integer", "refused": "integer",
            }],
            "upstream": {"state": "string"},
            "problems": [{
                "first_at": "time", "last_at": "time", "times": "integer", "level": "string", "code": "string",
                "message": "string", "fields": {"sink": "string"},
            }],
            "log_lines_dropped": "integer",
            "settings": [{
                "setting": "string", "source": "string", "value": "string", "restart_needed": "bool",
            }],
            "history": {
                "every_seconds": "integer", "samples": "integer", "newest_at": "time",
                "callbacks_per_second": {"accepted": ["number"]},
                "answer_p50_seconds": ["number"], "answer_p99_seconds": ["number"],
                "commit_p50_seconds": ["number"], "commit_p99_seconds": ["number"],
                "spool_used_bytes": ["integer"], "unconfirmed_events": ["integer"],
                "sinks": {"kafka": {
                    "lag": ["integer"], "oldest_unconfirmed_seconds": ["number"], "confirmed_per_second": ["number"],
                }},
            },
        })
    );
}

#[test]
fn it_says_when_the_certificate_expires() {
    let authority = Authority::new();
    let expires = UNIX_EPOCH + Duration::from_secs(1_900_000_000);
    let (cert, key) = authority.sign_until("relay", ServerAuth, Some(expires));
    let relay = Setup::new()
        .set("RECALL_HTTP__TLS__CERT", cert.to_str().unwrap())
        .set("RECALL_HTTP__TLS__KEY", key.to_str().unwrap())
        .start();
    let expected = json!({"file": cert, "expires_at": "2030-03-17T17:46:40.000Z"});
    assert_eq!(status(&relay)["certificate"], expected);
    relay.stop();
}

#[test]
fn it_says_what_waits_and_why() {
    let relay = Setup::new()
        .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
        .start();
    relay.recalls("g", 1..=7);
    relay.until_down("kafka", "");
    let (sink, problem) = until_status(&relay, "the age of the oldest event", |status| {
        let sink = &status["sinks"][0];
        let problems = status["problems"].as_array()?;
        let problem = problems.iter().find(|each| each["code"] == "sink_down")?;
        sink["oldest_unconfirmed_seconds"].as_f64()?;
        Some((sink.clone(), problem.clone()))
    });
    assert_eq!(sink["lag"], 7);
    assert_eq!(sink["state"], "down");
    assert_eq!(status(&relay)["spool"]["unconfirmed_events"], 7);
    assert_eq!(status(&relay)["ready"], true);
    assert_eq!(problem["level"], "WARN");
    assert_eq!(problem["fields"]["sink"], "kafka");
    let logged = relay.log_entry("sink_down").unwrap();
    assert_eq!(problem["fields"]["reason"], logged["reason"]);
    assert_eq!(problem["message"], logged["message"]);
    relay.kill();
}

#[test]
fn settings_are_those_in_force_and_secrets_are_hidden() {
    let setup = Setup::new();
    let file = setup.folder().join("relay.toml");
    let write = |token: &str, more: &str| {
        let text = format!("auth.tokens = \"{token}\"\n{more}\n");
        fs::write(&file, text).unwrap();
    };
    write("classified-1", "");
    let setup = setup.set("RECALL_CONFIG", file.to_str().unwrap());
    let relay = setup.start();
    let row = |status: &Value, setting: &str| {
        let rows = status["settings"].as_array().unwrap();
        let row = rows.iter().find(|row| row["setting"] == setting).unwrap();
        row.clone()
    };
    let before = status(&relay);
    assert_eq!(row(&before, "auth.tokens")["value"], "[hidden]");
    assert_eq!(
        row(&before, "auth.tokens")["source"],
        file.to_str().unwrap()
    );
    assert_eq!(row(&before, "log.filter")["value"], "info");
    assert_eq!(row(&before, "log.filter")["source"], "default");

    write(
        "classified-2",
        "log.filter = \"debug\"\nhttp.path = \"/im\"",
    );
    relay.signal(Signal::SIGHUP);
    let after = until_status(&relay, "the new filter", |status| {
        (row(status, "log.filter")["value"] == "debug").then(|| status.clone())
    });
    let path = row(&after, "http.path");
    assert_eq!(
        (&path["value"], &path["restart_needed"]),
        (&json!("/"), &json!(true))
    );
    assert_eq!(row(&after, "log.filter")["restart_needed"], false);
    assert!(!relay.admin("/status").text().contains("classified"));

    // A wrong configuration changes nothing.
    write("classified-3", "log.filter = \"loud\"");
    relay.signal(Signal::SIGHUP);
    let problem = until_status(&relay, "the failed reload", |status| {
        let newest = &status["problems"][0];
        (newest["code"] == "reload_failed").then(|| newest.clone())
    });
    assert_eq!(problem["level"], "ERROR");
    assert_eq!(row(&status(&relay), "log.filter")["value"], "debug");
    relay.stop();
}

#[test]
fn the_page_may_run_only_its_own_script_and_ask_only_the_relay() {
    let relay = Setup::new().start();
    let page = relay.admin("/");
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    for (name, value) in [
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}");
    }
    let policy = page.header("content-security-policy").unwrap();
    let directives: Vec<&str> = policy.split("; ").collect();
    for directive in [
        "default-src 'none'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(directives.contains(&directive), "{policy}");
    }
    // The page is one answer: it names nothing to load.
    for loaded in ["src=", "@import", "url(", "innerHTML", "<base"] {
        assert!(!page.text().contains(loaded), "{loaded}");
    }
    relay.stop();
}

/// DNS rebinding: docs/how-to/secure.md.
#[test]
fn a_foreign_host_is_refused() {
    let relay = Setup::new().start();
    for path in ["/", "/status"] {
        let mut connection = rig::Connection::open(relay.admin).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n");
        connection.send(request.as_bytes()).unwrap();
        assert_eq!(connection.answer().unwrap().status, 403, "{path}");
        assert_eq!(rig::request(relay.admin, "POST", path, b"").status, 405);
    }
    relay.stop();
}
