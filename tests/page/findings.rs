//! What the page says first, of a status with these values. The page's own script judges it, in the browser.

use serde_json::{Value, json};

use crate::rig::{Browser, Relay, Setup};

/// Tone, headline and detail of each finding about the status of `relay` if it had `changes`: pointers and values.
fn findings(browser: &Browser, relay: &Relay, changes: &[(&str, Value)]) -> Value {
    let mut status: Value = serde_json::from_slice(&relay.admin("/status").body).unwrap();
    for (pointer, value) in changes {
        let (object, name) = pointer.rsplit_once('/').unwrap();
        status.pointer_mut(object).unwrap()[name] = value.clone();
    }
    browser.run(&format!("return findings({status})"))
}

#[test]
fn a_spool_that_is_nearly_full_is_told_before_callbacks_are_refused() {
    let relay = Setup::new().start();
    let browser = super::open(&relay);
    relay.until_sink("stdout", "up");
    let full = |percent: u64| {
        let changes = [
            ("/spool/percent", json!(percent)),
            ("/spool/available_bytes", json!(52_428_800)),
            ("/spool/full_in_seconds", json!(7200)),
        ];
        findings(&browser, &relay, &changes)
    };
    let good = json!([[
        "good",
        "Callbacks are accepted and published",
        "Nothing is stuck."
    ]]);
    assert_eq!(full(79), good);
    let detail = "50 MiB left. At the current rate it is full in 2 h. When it is full, callbacks are refused.";
    assert_eq!(
        full(80),
        json!([["warn", "The spool is 80 % full", detail]])
    );
    assert_eq!(full(95), json!([["bad", "The spool is 95 % full", detail]]));
    relay.stop();
}

#[test]
fn damage_is_told_until_somebody_has_dealt_with_it() {
    let relay = Setup::new().start();
    let browser = super::open(&relay);
    relay.until_sink("stdout", "up");
    let of = |changes: &[(&str, Value)]| findings(&browser, &relay, changes);
    let lost = ("/spool/lost", json!(3));
    let expected = json!([["bad", "Events were lost", "3 events lost. Check the disk."]]);
    let at_start = ("/spool/lost_at_start", json!(3));
    assert_eq!(of(&[lost.clone(), at_start]), expected);
    let quarantined = ("/spool/quarantined", json!(["/spool.db.damaged-1"]));
    assert_eq!(of(&[lost.clone(), quarantined.clone()]), expected);
    assert_eq!(of(&[lost])[0][0], "good", "an earlier start has lost them");
    assert_eq!(
        of(&[quarantined]),
        json!([[
            "bad",
            "The spool was damaged",
            "No event was lost. Check the disk."
        ]])
    );
    assert_eq!(
        of(&[("/spool/unreadable", json!(1))]),
        json!([[
            "bad",
            "Events cannot be read",
            "1 event unreadable and not published. Check the disk."
        ]])
    );
    relay.stop();
}

#[test]
fn a_sink_that_is_up_but_late_is_told() {
    let relay = Setup::new().start();
    let browser = super::open(&relay);
    relay.until_sink("stdout", "up");
    let waiting = |changes: &[(&str, Value)]| {
        let changes = [&[("/sinks/0/lag", json!(1200))], changes].concat();
        findings(&browser, &relay, &changes)
    };
    let since = |seconds: u64| ("/sinks/0/oldest_unconfirmed_seconds", json!(seconds));
    assert_eq!(waiting(&[since(300)])[0][0], "good");
    let late = json!([[
        "warn",
        "Events reach stdout late",
        "1,200 events wait in the spool, the oldest for 10 min."
    ]]);
    assert_eq!(waiting(&[since(600)]), late);
    let down = waiting(&[since(600), ("/sinks/0/state", json!("down"))]);
    assert_eq!(down.as_array().unwrap().len(), 1, "{down}");
}

#[test]
fn answers_that_do_not_wait_for_a_broker_are_told() {
    let relay = Setup::new().start();
    let browser = super::open(&relay);
    relay.until_sink("stdout", "up");
    let of = |answers_wait: bool| {
        let changes = [
            ("/sinks/0/answers_wait", json!(answers_wait)),
            ("/spool/at_risk_events", json!(19)),
        ];
        findings(&browser, &relay, &changes)
    };
    assert_eq!(of(true)[0][0], "good");
    let told = json!([[
        "warn",
        "Answers do not wait for stdout",
        "19 events on this machine alone."
    ]]);
    assert_eq!(of(false), told);
}

#[test]
fn a_certificate_that_expires_is_told_from_14_days_before() {
    let relay = Setup::new().start();
    let browser = super::open(&relay);
    relay.until_sink("stdout", "up");
    let at = |now: &str| {
        let certificate =
            json!({"file": "/etc/relay.pem", "expires_at": "2026-11-15T00:00:00.000Z"});
        let changes = [("/at", json!(now)), ("/certificate", certificate)];
        findings(&browser, &relay, &changes)
    };
    assert_eq!(at("2026-10-31T23:59:59.000Z")[0][0], "good");
    assert_eq!(
        at("2026-11-01T00:00:00.000Z"),
        json!([[
            "warn",
            "The certificate expires in 14 d",
            "/etc/relay.pem: replace it. Once it has expired, clients that check it send no callbacks."
        ]])
    );
    assert_eq!(
        at("2026-11-15T00:00:00.000Z"),
        json!([[
            "bad",
            "The certificate has expired",
            "/etc/relay.pem: replace it. Clients that check it send no callbacks."
        ]])
    );
    relay.stop();
}

#[test]
fn the_worst_finding_is_the_first() {
    let relay = Setup::new().start();
    let browser = super::open(&relay);
    relay.until_sink("stdout", "up");
    let found = findings(
        &browser,
        &relay,
        &[
            (
                "/callbacks/recalls_not_accepted_last_minute",
                json!({"refused": 2, "unavailable": 1}),
            ),
            ("/sinks/0/state", json!("down")),
            ("/spool/dead_letters", json!(2)),
            ("/spool/lost", json!(1)),
            ("/spool/damaged", json!("its newest events are missing")),
            ("/spool/percent", json!(96)),
        ],
    );
    let found: Vec<_> = found.as_array().unwrap().iter().collect();
    let headlines: Vec<_> = found.iter().map(|each| (&each[0], &each[1])).collect();
    let expected = [
        ("bad", "Recalls are being lost"),
        ("bad", "Events were lost"),
        ("bad", "The spool is 96 % full"),
        ("warn", "Callbacks are accepted, but stdout is down"),
        ("warn", "Some recalls are not accepted"),
        ("warn", "Dead letters stay in the spool"),
    ];
    let expected = expected.map(|(tone, headline)| (json!(tone), json!(headline)));
    assert_eq!(
        headlines,
        expected.each_ref().map(|(tone, headline)| (tone, headline))
    );
    relay.stop();
}

#[test]
fn what_is_not_known_or_gone_is_not_shown() {
    let relay = Setup::new().start();
    let browser = super::open(&relay);
    browser.until_text("#sinks", &["Sink stdout"]);
    // The sink has confirmed the event that was the oldest, but not all.
    let age = browser.run(
        "const sink = { sink: 'stdout', state: 'up', cursor: 1, lag: 1, confirmed: 1, refused: 0 };
         const stdout = { lag: [0], oldest_unconfirmed_seconds: [0], confirmed_per_second: [0] };
         showSinks({ sinks: [sink], history: { sinks: { stdout } } }, new Date());
         return document.querySelectorAll('#sinks .figure')[1].textContent",
    );
    assert_eq!(age, "–");
    // As after a restart with another sink.
    let cards = browser.run(
        "showSinks({ sinks: [], history: { sinks: {} } }, new Date());
         return document.querySelectorAll('#sinks .card').length",
    );
    assert_eq!(cards, 0);
    browser.until_text("#sinks", &["Sink stdout"]);
    relay.stop();
}
