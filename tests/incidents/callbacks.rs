//! Callbacks that the relay does not accept, although it could store them.

use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use rcgen::ExtendedKeyUsagePurpose::ServerAuth;
use recall_relay::vendor::CallbackKind;

use super::page::{Incident, Seen};
use super::rig::{APP, Authority, Backend, Connection, Faults, Relay, Setup, recall, until};

/// Sends a recall that is signed with this token now.
pub fn signed(relay: &Relay, token: &str, number: u64) -> u16 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let query = CallbackKind::Group.query(APP, Some((token, now)));
    relay.post(&query, recall("a", number)).status
}

/// The console has a new token, the relay does not.
#[test]
fn the_token_was_rotated() {
    let setup = Setup::new();
    let file = setup.folder().join("tokens");
    std::fs::write(&file, "old-token").unwrap();
    let setup = setup.set("RECALL_AUTH__TOKENS_FILE", file.to_str().unwrap());
    let relay = setup.start();
    assert_eq!(signed(&relay, "old-token", 1), 200);
    let incident = Incident::begin("token-rotated", &relay);
    for number in 2..=4 {
        assert_eq!(signed(&relay, "new-token", number), 403);
    }
    let seen = Seen::of(&relay);
    std::fs::write(&file, "old-token,new-token").unwrap();
    relay.signal(Signal::SIGHUP);
    until("the new token", || relay.log_entry("reloaded"));
    assert_eq!(signed(&relay, "new-token", 5), 200);
    until("the line of the refused", || {
        relay.log_entry("recalls_not_accepted")
    });
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// The relay's clock is an hour ahead.
#[test]
fn the_clock_is_off() {
    let faults = Faults::new();
    faults.set_clock_forward(Duration::from_secs(3600));
    let setup = Setup::new()
        .set("RECALL_AUTH__TOKENS", "token-of-the-console")
        .with_faults(&faults);
    let relay = setup.start();
    let incident = Incident::begin("clock-off", &relay);
    for number in 1..=3 {
        assert_eq!(signed(&relay, "token-of-the-console", number), 403);
    }
    until("the line of the refused", || {
        relay.log_entry("recalls_not_accepted")
    });
    let seen = Seen::of(&relay);
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

#[test]
fn the_certificate_has_expired() {
    let authority = Authority::new();
    let yesterday = SystemTime::now() - Duration::from_secs(24 * 3600);
    let (cert, key) = authority.sign_until("relay", ServerAuth, Some(yesterday));
    let setup = Setup::new()
        .set("RECALL_HTTP__TLS__CERT", cert.to_str().unwrap())
        .set("RECALL_HTTP__TLS__KEY", key.to_str().unwrap());
    let relay = setup.start();
    let incident = Incident::at_start("certificate-expired")
        .called(&relay.callbacks.to_string(), "0.0.0.0:8080")
        .called(&relay.admin.to_string(), "127.0.0.1:8081")
        .called(
            cert.parent().unwrap().to_str().unwrap(),
            "/etc/recall-relay",
        );
    until("the line", || relay.log_entry("certificate_expired"));
    until("the sink to be up", || relay.log_entry("sink_up"));
    let seen = Seen::of(&relay);
    let (new_cert, new_key) = authority.sign("new", ServerAuth);
    std::fs::copy(new_key, key).unwrap();
    std::fs::copy(new_cert, cert).unwrap();
    relay.signal(Signal::SIGHUP);
    until("the new certificate", || relay.log_entry("reloaded"));
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// `http.path` was changed here, and not in the console.
#[test]
fn the_path_was_changed() {
    let setup = Setup::new().set("RECALL_HTTP__PATH", "/im");
    let relay = setup.start();
    let incident = Incident::begin("path-changed", &relay);
    for number in 1..=3 {
        assert_eq!(relay.recall("a", number).status, 404);
    }
    until("the line of those not read", || {
        relay.log_entry("recalls_not_accepted")
    });
    let seen = Seen::of(&relay);
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

#[test]
fn a_reload_fails() {
    let setup = Setup::new();
    let file = setup.folder().join("relay.toml");
    std::fs::write(&file, "auth.tokens = \"old-token\"\n").unwrap();
    let setup = setup.set("RECALL_CONFIG", file.to_str().unwrap());
    let relay = setup.start();
    let incident = Incident::begin("reload-failed", &relay);
    std::fs::write(&file, "auth.token = \"new-token\"\n").unwrap();
    relay.signal(Signal::SIGHUP);
    until("the reload to fail", || relay.log_entry("reload_failed"));
    let seen = Seen::of(&relay);
    std::fs::write(&file, "auth.tokens = \"new-token\"\n").unwrap();
    relay.signal(Signal::SIGHUP);
    until("the reload", || relay.log_entry("reloaded"));
    assert_eq!(signed(&relay, "new-token", 1), 200);
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// The backend that answers the other commands is away, then back.
#[test]
fn the_backend_is_down() {
    let mut backend = Backend::start();
    let url = format!("http://{}/", backend.address());
    let setup = Setup::new().set("RECALL_UPSTREAM__URL", &url);
    let relay = setup.start();
    let ask = || {
        relay
            .post(&CallbackKind::Other.query(APP, None), "{}")
            .status
    };
    assert_eq!(ask(), 200);
    let incident = Incident::begin("backend-down", &relay)
        .called(&backend.address().to_string(), "backend:8080");
    backend.stop();
    until("the breaker to open", || {
        assert_eq!(ask(), 502);
        relay.log_entry("upstream_down")
    });
    assert!(relay.recall("a", 1).is_ok());
    let seen = Seen::of(&relay);
    backend.resume();
    until("the backend to answer", || {
        ask();
        relay.log_entry("upstream_up")
    });
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// Clients that say nothing hold every connection.
#[test]
fn connections_are_full() {
    let setup = Setup::new()
        .set("RECALL_HTTP__MAX_CONNECTIONS", "4")
        .set("RECALL_AUTH__TOKENS", "token");
    let relay = setup.start();
    let incident = Incident::begin("connections-full", &relay);
    let silent: Vec<_> = (0..4)
        .map(|_| Connection::open(relay.callbacks).unwrap())
        .collect();
    until("the connections", || {
        (relay.metric("recall_http_connections") == "4").then_some(())
    });
    assert_eq!(signed(&relay, "token", 1), 200);
    until("the line", || relay.log_entry("connections_full"));
    let seen = Seen::of(&relay);
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    drop(silent);
    relay.stop();
}
