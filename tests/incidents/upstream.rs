//! The backend is slow.

use std::time::Duration;

use recall_relay::vendor::CallbackKind;

use super::page::{Incident, Seen};
use super::rig::{APP, Backend, Relay, Reply, Setup, until};

/// Longer than `upstream.timeout` can be.
const LATE: Duration = Duration::from_secs(3);

/// A relay with this backend.
fn with_backend(backend: &Backend) -> Setup {
    let url = format!("http://{}/", backend.address());
    Setup::new().set("RECALL_UPSTREAM__URL", &url)
}

/// Sends another command than a recall; returns the status.
fn other(relay: &Relay) -> u16 {
    let query = CallbackKind::Other.query(APP, None);
    relay.post(&query, "{}").status
}

#[test]
fn the_backend_is_slow() {
    let backend = Backend::start();
    let setup = with_backend(&backend).set("RECALL_UPSTREAM__TIMEOUT", "1900ms");
    let relay = setup.start();
    let incident = Incident::begin("backend-slow", &relay)
        .called(&backend.address().to_string(), "backend:8080");
    backend.reply(Reply::json("{}").late(Duration::from_millis(1100)));
    // On a busy machine, this one may be late, too.
    until("a slow answer", || (other(&relay) == 200).then_some(()));
    backend.reply(Reply::json("{}").late(LATE));
    assert_eq!(other(&relay), 504);
    assert_eq!(
        relay.metric(r#"recall_upstream_seconds_bucket{le="1.0"}"#),
        "0"
    );
    until("the line", || relay.log_entry("upstream_failed"));
    let seen = Seen::of(&relay);
    backend.reply(Reply::json("{}"));
    until("an answer", || (other(&relay) == 200).then_some(()));
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// The backend takes long for recalls, and answers other commands in time.
#[test]
fn the_backend_misses_copies() {
    let backend = Backend::start();
    let setup = with_backend(&backend).set("RECALL_UPSTREAM__COPY_RECALLS", "true");
    let relay = setup.start();
    let incident = Incident::begin("copies-missed", &relay)
        .called(&backend.address().to_string(), "backend:8080");
    let copies = |outcome: &str| {
        relay.metric(&format!(
            r#"recall_upstream_copies_total{{outcome="{outcome}"}}"#
        ))
    };
    backend.reply_by(|request| {
        let is_recall = request.target.contains("Recall");
        Reply::json("{}").late(if is_recall { LATE } else { Duration::ZERO })
    });
    relay.recalls("a", 1..=3);
    until("the copies to be missed", || {
        (copies("late") == "3").then_some(())
    });
    assert_eq!(other(&relay), 200);
    until("the line", || relay.log_entry("copies_missed"));
    let seen = Seen::of(&relay);
    backend.reply(Reply::json("{}"));
    let mut number = 3;
    until("a copy", || {
        number += 1;
        relay.recalls("a", number..=number);
        (copies("answered") != "0").then_some(())
    });
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}
