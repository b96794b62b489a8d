//! Beside a running relay: its readiness, its sinks, and the clock of the vendor.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use recall_relay::vendor::CallbackKind;

use super::rig::{APP, Backend, Faults, Reply, Setup, free_port, recall, recall_query, until};
use super::{Checked, check};

/// A relay whose listener for operators has a known address.
fn setup() -> Setup {
    let admin = format!("127.0.0.1:{}", free_port());
    Setup::new().set("RECALL_ADMIN__LISTEN", &admin)
}

#[test]
fn what_readyz_says_is_reported() {
    let setup = setup();
    check(&setup, &[]).assert("relay", "process", "ok", "no relay runs here");

    let backend = format!("http://127.0.0.1:{}/", free_port());
    let setup = setup
        .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
        .set("RECALL_UPSTREAM__URL", &backend);
    let relay = setup.start();
    relay.recalls("g", 1..=2);
    relay.until_down("kafka", "");
    // It is down after a few failures.
    until("the backend to be down", || {
        relay.post(&CallbackKind::Other.query(APP, None), "{}");
        (relay.readiness()["upstream"]["state"] == "down").then_some(())
    });
    let checked = check(&setup, &[]);
    checked.assert("relay", "process", "ok", "a relay runs here and is ready");
    checked.assert("relay", "sink kafka", "failed", ", 2 events wait: ");
    checked.assert("relay", "backend", "failed", "down since 20");
    let foreign = CallbackKind::Group.query(7, None);
    relay.post(&foreign, recall("g", 3));
    let checked = check(&setup, &[]);
    checked.assert(
        "relay",
        "recalls",
        "warning",
        "not accepted within the last minute: 1 refused",
    );
    relay.kill();
}

#[test]
fn a_relay_that_is_not_ready_or_a_stranger_on_its_port_is_reported() {
    let setup = setup().set("RECALL_SPOOL__RESERVE", "1EiB");
    let relay = setup.start();
    check(&setup, &[]).assert("relay", "process", "failed", "is not ready: ");
    relay.kill();

    let stranger = Backend::start();
    let address = stranger.address().to_string();
    let setup = Setup::new().set("RECALL_ADMIN__LISTEN", &address);
    check(&setup, &[]).assert_only_failed("relay", "process", "is not a relay");
    stranger.reply(Reply::raw("").then_close());
    check(&setup, &[]).assert_only_failed("relay", "process", "gives no answer: ");
    stranger.reply(Reply::hang());
    check(&setup, &[]).assert_only_failed("relay", "process", "did not answer within 5 s");
}

#[test]
fn a_sink_that_is_starting_is_a_warning() {
    let setup = setup();
    let relay = setup.start();
    relay.recalls("g", 1..=1);
    relay.until_drained("stdout");
    check(&setup, &[]).assert("relay", "sink stdout", "ok", "up, 0 events wait");
    relay.stop();

    // A relay is in this state for a moment only.
    let stranger = Backend::start();
    stranger.reply(Reply::json(
        r#"{"ready":true,"sinks":{"kafka":{"state":"starting","lag":3}},"recalls_not_accepted_last_minute":{}}"#,
    ));
    let setup = setup.with("RECALL_ADMIN__LISTEN", &stranger.address().to_string());
    check(&setup, &[]).assert("relay", "sink kafka", "warning", "starting, 3 events wait");
}

#[test]
fn the_skew_of_signed_callbacks_is_judged() {
    let faults = Faults::new();
    let token = "a-token-of-16-ch";
    let setup = setup().set("RECALL_AUTH__TOKENS", token);
    let relay = setup.with_faults(&faults).start();
    let untried = "the running relay has received no signed callback yet";
    check(&setup, &[]).assert("clock", "callbacks", "untried", untried);
    let send = |behind: u16| {
        faults.set_clock_forward(Duration::from_secs(behind.into()));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let query = CallbackKind::Group.query(APP, Some((token, now.as_secs())));
        relay.post(&query, recall("g", behind.into()));
        check(&setup, &[])
    };
    assert_skew(&send(0), "ok", 0);
    assert_skew(&send(20), "ok", 20);
    assert_skew(&send(40), "warning", 40);
    // Anyone can send an old callback again, so this is no failure.
    let stale = send(100);
    assert_skew(&stale, "warning", 100);
    stale.assert_no_failure();
    let reasons = "came late or was sent again, or a clock is wrong";
    stale.assert("clock", "callbacks", "warning", reasons);
    // Neither a callback without a signature nor the doctor's own probe counts.
    relay.post(&recall_query(), recall("g", 7));
    faults.heal();
    let url = format!("http://{}/", relay.callbacks);
    check(&setup, &["--url", &url]).assert("callback_url", "probe", "ok", "answered OK");
    assert_skew(&check(&setup, &[]), "warning", 100);
    relay.kill();
    let text = "no relay runs here";
    check(&setup, &[]).assert("clock", "callbacks", "untried", text);
}

/// Asserts the result for the last callback, which was signed this many seconds before it arrived. The time in its
/// signature has no fraction, and it was on its way for a moment.
#[track_caller]
fn assert_skew(checked: &Checked, result: &str, behind: u16) {
    let line = checked.of("clock", "callbacks")[0];
    assert_eq!(line["result"], result, "{checked}");
    let skew = line["text"].as_str().unwrap();
    let skew = skew.split("was ").nth(1).unwrap().split(' ').next();
    let skew: f64 = skew.unwrap().parse().unwrap();
    let behind = f64::from(behind);
    assert!((-behind - 3.0..=-behind).contains(&skew), "{checked}");
    assert_eq!(result == "ok", line.get("action").is_none(), "{checked}");
}

#[test]
fn metrics_that_are_refused_are_not_taken_for_an_answer() {
    let stranger = Backend::start();
    stranger.reply_by(|request| match request.target.as_str() {
        "/metrics" => Reply::new(503, "", b"too many scrapes"),
        _ => Reply::json(r#"{"ready":true,"sinks":{},"recalls_not_accepted_last_minute":{}}"#),
    });
    let setup = Setup::new().set("RECALL_ADMIN__LISTEN", &stranger.address().to_string());
    let untried = "the running relay answered 503 Service Unavailable for /metrics";
    let checked = check(&setup, &[]);
    checked.assert("clock", "callbacks", "untried", untried);
    checked.assert_no_failure();
}

#[test]
fn the_kernel_is_asked_for_the_clock() {
    let faults = Faults::new();
    let setup = Setup::new().with_faults(&faults);
    faults.set_kernel_clock(true);
    let checked = check(&setup, &[]);
    checked.assert("clock", "kernel", "ok", "synchronised; its error is");
    faults.set_kernel_clock(false);
    let checked = check(&setup, &[]);
    let text = "not known to be synchronised";
    checked.assert("clock", "kernel", "warning", text);
    checked.assert_no_failure();
}
