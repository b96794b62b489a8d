//! The status page as people read it, in a real browser.
//!
//! `RECALL_TEST_REGENERATE=1 tests/run --test page` also takes the pictures of docs/images. That takes some minutes
//! longer, so that the plots show something, and needs `pngquant`.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "page/findings.rs"]
mod findings;
mod rig;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use recall_relay::vendor::CallbackKind;
use rig::{APP, Broker as _, Browser, Kafka, Load, Relay, Setup, poll, until};
use serde_json::{Value, json};

/// Markup that would run a script if the page made anything but text of it.
const MARKUP: &str = "<img src=x onerror=alert(1)>";

/// A page with many details and a phone's.
const SCREEN: (u32, u32) = (1180, 980);
const PHONE: (u32, u32) = (360, 740);

fn open(relay: &Relay) -> Browser {
    let browser = Browser::start();
    browser.resize(SCREEN.0, SCREEN.1);
    browser.open(&url(relay));
    browser
}

fn url(relay: &Relay) -> String {
    format!("http://{}/", relay.admin)
}

fn is_regenerating() -> bool {
    std::env::var_os("RECALL_TEST_REGENERATE").is_some()
}

/// Waits until the page has `samples` samples, or `for_a_picture` if pictures are taken.
#[track_caller]
fn wait_for_samples(relay: &Relay, samples: u64, for_a_picture: u64) {
    let wanted = if is_regenerating() {
        for_a_picture
    } else {
        samples
    };
    let has_them = || {
        let status: Value = serde_json::from_slice(&relay.admin("/status").body).unwrap();
        status["history"]["samples"].as_u64().unwrap() >= wanted
    };
    assert!(poll(Duration::from_secs(600), has_them), "no samples");
}

/// Takes a picture for the documents.
fn picture(browser: &Browser, name: &str, (width, height): (u32, u32), scheme: &str) {
    if is_regenerating() {
        browser.resize(width, height);
        browser.prefer(scheme);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join(format!("status-{name}.png"));
        fs::write(&file, browser.screenshot(height)).unwrap();
        // A third of the bytes.
        let compressed = Command::new("pngquant")
            .args(["--force", "--strip", "--ext", ".png", "128"])
            .arg(&file)
            .status();
        let compressed = compressed.expect("pngquant is missing: install Debian's package");
        assert!(compressed.success(), "{compressed}");
        browser.resize(SCREEN.0, SCREEN.1);
        browser.prefer("light");
    }
}

/// Asserts that neither the page's policy nor its script had a problem, and that it has asked nobody but the relay.
#[track_caller]
fn assert_is_clean(browser: &Browser, relay: &Relay) {
    assert_eq!(browser.console(), Vec::<String>::new());
    let requests = browser.requests();
    assert!(requests.len() >= 2, "{requests:?}");
    for request in requests {
        let is_own = request.starts_with(&url(relay)) || request.starts_with("data:image/svg+xml,");
        assert!(is_own, "{request}");
    }
}

/// Asserts that nothing is cut off or has to be scrolled sideways on a phone, in all details.
#[track_caller]
fn assert_fits_a_phone(browser: &Browser) {
    browser.resize(PHONE.0, PHONE.1);
    browser.run("document.querySelector('#settings').open = true");
    let widths = browser.run("return [innerWidth, document.documentElement.scrollWidth]");
    assert_eq!(widths, json!([360, 360]));
    // Neither does a part of it need that.
    let too_wide = browser.run(
        "return [...document.querySelectorAll('body *:not(thead *, thead)')]
             .filter((each) => each.getBoundingClientRect().right > 360)
             .map((each) => each.outerHTML.slice(0, 100))",
    );
    assert_eq!(too_wide, json!([]));
    browser.run("document.querySelector('#settings').open = false");
    browser.resize(SCREEN.0, SCREEN.1);
}

/// The accessible names of the plots within an element.
fn plots(browser: &Browser, selector: &str) -> Vec<String> {
    let selector = json!(format!("{selector} svg[role=img]"));
    let labels = browser.run(&format!(
        "return [...document.querySelectorAll({selector})].map((each) => each.getAttribute('aria-label'))"
    ));
    serde_json::from_value(labels).unwrap()
}

/// Waits until a plot within an element has a name that `is_expected`.
#[track_caller]
fn until_plot(browser: &Browser, selector: &str, is_expected: impl Fn(&str) -> bool) -> String {
    let mut seen = Vec::new();
    let found = poll(rig::TIMEOUT, || {
        seen = plots(browser, selector);
        seen.iter().any(|label| is_expected(label))
    });
    assert!(found, "{selector}: {seen:?}");
    seen.into_iter().find(|label| is_expected(label)).unwrap()
}

#[test]
fn a_fresh_relay_says_that_all_is_well_and_shows_markup_as_text() {
    let setup = Setup::new();
    // A name from outside in a setting, and one in the text of a warning.
    let spool = setup.folder().join(MARKUP).join("spool.db");
    let setup = setup
        .without("RECALL_SPOOL__PATH")
        .set("RECALL_SPOOL__PATH", spool.to_str().unwrap());
    let relay = setup.start();
    let browser = open(&relay);
    browser.until_text(
        "#verdict",
        &[
            "✓Callbacks are accepted and published",
            "Nothing is stuck.",
            "✓up",
        ],
    );
    assert_eq!(browser.text("#stale"), "");
    browser.until_text("#live", &["Live, ", " UTC"]);
    browser.until_text("#callbacks", &["0 requests since the start", "accepted"]);
    browser.until_text(
        "#spool",
        &[
            "Nothing waits",
            "It is not filling.",
            "0 % taken",
            "of 1 GiB left",
        ],
    );
    browser.until_text("#sinks", &["Sink stdout", "Confirmed since the start\n0"]);
    browser.until_text("#upstream", &["None", "upstream.url is not set"]);
    browser.until_text("#dead-letters", &["None in the spool"]);
    browser.until_text(
        "#problems",
        &["WARN", "no_upstream", "set upstream.url to its URL"],
    );
    browser.until_text(
        "footer",
        &[env!("CARGO_PKG_VERSION"), "This page changes nothing."],
    );
    // One sample, of nothing.
    until_plot(&browser, "#spool", |label| {
        label == "Waiting events, last 15 minutes: now 0; largest 0"
    });
    until_plot(&browser, "#latency", |label| {
        label == "Answer, last 15 minutes: now p50 none, p99 none; largest 0 µs"
    });
    wait_for_samples(&relay, 1, 12);
    picture(&browser, "fresh", SCREEN, "light");

    let rejected = json!({ "CallbackCommand": MARKUP }).to_string();
    let answer = relay.post(&CallbackKind::Group.query(APP, None), &rejected);
    assert_eq!(answer.status, 400, "{}", answer.text());
    browser.until_text(
        "#problems",
        &["callback_rejected", &format!("but body names {MARKUP}")],
    );
    assert_eq!(browser.text("#setting-rows"), "", "it is closed at first");
    browser.run("document.querySelector('#settings').open = true");
    browser.until_text(
        "#settings",
        &["spool.path", MARKUP, "RECALL_SPOOL__PATH", "default"],
    );
    assert_eq!(browser.run("return document.images.length"), 0);

    assert_fits_a_phone(&browser);
    assert_is_clean(&browser, &relay);
    assert_follows_the_colour_scheme(&browser);
    assert_names_status_without_javascript(&browser);
    relay.stop();
}

#[track_caller]
fn assert_follows_the_colour_scheme(browser: &Browser) {
    let colours = |scheme| {
        browser.prefer(scheme);
        browser.run("const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]")
    };
    assert_eq!(
        colours("light"),
        json!(["rgb(244, 245, 247)", "rgb(27, 35, 48)"])
    );
    assert_eq!(
        colours("dark"),
        json!(["rgb(17, 21, 28)", "rgb(228, 232, 238)"])
    );
}

#[track_caller]
fn assert_names_status_without_javascript(browser: &Browser) {
    browser.devtools(
        "Emulation.setScriptExecutionDisabled",
        &json!({ "value": true }),
    );
    browser.reload();
    // Its text cannot be read by a script.
    let root = browser.devtools("DOM.getDocument", &json!({}));
    let found = browser.devtools(
        "DOM.querySelector",
        &json!({ "nodeId": root["root"]["nodeId"], "selector": "noscript p" }),
    );
    let html = browser.devtools("DOM.getOuterHTML", &json!({ "nodeId": found["nodeId"] }));
    let html = html["outerHTML"].as_str().unwrap();
    assert!(html.contains("This page needs JavaScript."), "{html}");
    assert!(html.contains("href=\"status\""), "{html}");
}

#[test]
fn it_shows_the_load_then_an_outage_and_then_that_it_is_old() {
    let mut kafka = Kafka::start();
    let relay = kafka.settings(Setup::new(), "page").start();
    relay.until_sink("kafka", "up");
    let mut loads = vec![Load::start(
        relay.callbacks,
        "a",
        2,
        Duration::from_millis(20),
    )];
    let browser = open(&relay);
    wait_for_samples(&relay, 2, 24);
    if is_regenerating() {
        loads.push(Load::start(
            relay.callbacks,
            "b",
            3,
            Duration::from_millis(20),
        ));
        wait_for_samples(&relay, 2, 48);
    }

    // Busy.
    browser.until_text(
        "#verdict",
        &[
            "Callbacks are accepted and published",
            "Sink kafka",
            "✓up",
            "/s confirmed",
        ],
    );
    let accepted = until_plot(&browser, "#callbacks", |label| {
        label.starts_with("accepted, last 15 minutes: now ") && !label.contains("now 0/s")
    });
    assert!(accepted.contains("; largest "), "{accepted}");
    until_plot(&browser, "#latency", |label| {
        label.starts_with("Commit") && label.contains("p50 ") && !label.contains("none")
    });
    until_plot(&browser, "#sinks", |label| {
        label.starts_with("Confirmed") && !label.contains("now 0/s")
    });
    // The plots are there at once after a reload.
    browser.reload();
    let lines = "return document.querySelector('#outcomes path.first')?.getAttribute('d').split('L').length ?? 0";
    let shown = until("the plots", || {
        browser.run(lines).as_u64().filter(|count| *count > 0)
    });
    assert!(shown >= 2, "{shown}");
    assert_fits_a_phone(&browser);
    picture(&browser, "busy", SCREEN, "light");
    picture(&browser, "busy-dark", SCREEN, "dark");

    // The broker is down.
    kafka.kill();
    relay.until_sink("kafka", "down");
    browser.until_text(
        "#verdict",
        &[
            "!Callbacks are accepted, but kafka is down",
            "wait in the spool.",
            "✕down",
        ],
    );
    browser.until_text("#sinks", &["down since ", "Connection refused"]);
    browser.until_text(
        "#problems",
        &["sink_down", "sink is down: its events stay in the spool"],
    );
    let acknowledged = loads.iter().map(Load::acknowledged).sum::<u64>();
    until_plot(&browser, "#spool", |label| {
        label.starts_with("Waiting events") && !label.contains("now 0;")
    });
    until_plot(&browser, "#sinks", |label| {
        label.starts_with("Age of the oldest") && !label.contains("now 0 s;")
    });
    assert!(acknowledged > 0);
    wait_for_samples(&relay, 2, 72);
    assert_fits_a_phone(&browser);
    picture(&browser, "broker-down", SCREEN, "light");
    picture(&browser, "phone", PHONE, "dark");
    assert_is_clean(&browser, &relay);

    // The relay is gone.
    for load in loads {
        load.stop();
    }
    relay.kill();
    browser.until_text(
        "#stale",
        &[
            "The relay has not answered since ",
            "The figures below are from then.",
        ],
    );
    browser.until_text("#live", &["Old, from "]);
    browser.until_text("#verdict", &["kafka is down"]);
}

#[test]
fn a_full_spool_is_the_first_thing_it_says() {
    let relay = Setup::new()
        .set("RECALL_SPOOL__MAX_BYTES", "1MiB")
        .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
        .start();
    let browser = open(&relay);
    browser.until_text("#verdict", &["Callbacks are accepted"]);
    relay.until_sink("kafka", "down");
    wait_for_samples(&relay, 1, 12);
    let load = Load::start(relay.callbacks, "a", 2, Duration::from_millis(20));
    until("a full spool", || {
        (relay.admin("/readyz").status == 503).then_some(())
    });
    browser.until_text(
        "#verdict",
        &[
            "✕Callbacks are refused",
            "spool.max_bytes",
            "The vendor does not send a recall again.",
            "✕refused",
        ],
    );
    browser.until_text("#spool", &["It is full.", "of 1 MiB left", "wait"]);
    browser.until_text("#callbacks", &["not stored: answered 503", "accepted"]);
    browser.until_text(
        "#problems",
        &["ERROR", "recalls_not_accepted", "outcome unavailable"],
    );
    wait_for_samples(&relay, 1, 36);
    assert_fits_a_phone(&browser);
    picture(&browser, "spool-full", SCREEN, "light");
    assert_is_clean(&browser, &relay);
    load.stop();
    relay.kill();
}
