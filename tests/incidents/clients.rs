//! Clients that the relay does not let in, or that send something else than recalls that it can accept.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use rcgen::ExtendedKeyUsagePurpose::ServerAuth;
use recall_relay::vendor::CallbackKind;
use rustls::version::TLS13;

use super::callbacks::signed;
use super::page::{Incident, Seen};
use super::rig::{
    APP, Authority, Backend, Connection, HttpsClient, Relay, Setup, padded_recall, until,
};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Sends another command than a recall, signed with this token now; returns the status.
fn other(relay: &Relay, token: &str) -> u16 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let query = CallbackKind::Other.query(APP, Some((token, now)));
    relay.post(&query, "{}").status
}

/// The console has a new token, and no message has been recalled since.
#[test]
fn other_commands_have_bad_signatures() {
    let backend = Backend::start();
    let setup = Setup::new();
    let file = setup.folder().join("tokens");
    fs::write(&file, "old-token").unwrap();
    let setup = setup.set("RECALL_AUTH__TOKENS_FILE", text(&file)).set(
        "RECALL_UPSTREAM__URL",
        &format!("http://{}/", backend.address()),
    );
    let relay = setup.start();
    assert_eq!(other(&relay, "old-token"), 200);
    let incident = Incident::begin("bad-signatures", &relay);
    for _ in 0..3 {
        assert_eq!(other(&relay, "new-token"), 200);
    }
    let command = CallbackKind::Other.command();
    let metric = format!(r#"recall_callback_bad_signatures_total{{command="{command}"}}"#);
    assert_eq!(relay.metric(&metric), "3");
    until("the line", || relay.log_entry("bad_signature"));
    let seen = Seen::of(&relay);
    fs::write(&file, "old-token,new-token").unwrap();
    relay.signal(Signal::SIGHUP);
    until("the new token", || relay.log_entry("reloaded"));
    assert_eq!(other(&relay, "new-token"), 200);
    assert_eq!(relay.metric(&metric), "3");
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

#[test]
fn a_source_has_all_its_connections_in_use() {
    let setup = Setup::new()
        .set("RECALL_HTTP__MAX_CONNECTIONS_PER_SOURCE", "2")
        .set("RECALL_AUTH__TOKENS", "token");
    let relay = setup.start();
    let incident = Incident::begin("source-connections-full", &relay);
    let open = || Connection::open(relay.callbacks).unwrap();
    let silent = [open(), open()];
    until("the connections", || {
        (relay.metric("recall_http_connections") == "2").then_some(())
    });
    let _refused = open();
    until("the line", || relay.log_entry("source_connections_full"));
    assert_eq!(relay.metric("recall_http_connections_refused_total"), "1");
    let seen = Seen::of(&relay);
    drop(silent);
    until("the connections to be closed", || {
        (relay.metric("recall_http_connections") == "0").then_some(())
    });
    assert_eq!(signed(&relay, "token", 1), 200);
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

#[test]
fn clients_without_a_certificate_are_refused() {
    let authority = Authority::new();
    let (cert, key) = authority.sign("relay", ServerAuth);
    let setup = Setup::new()
        .set("RECALL_HTTP__TLS__CERT", text(&cert))
        .set("RECALL_HTTP__TLS__KEY", text(&key))
        .set("RECALL_HTTP__TLS__CLIENT_CA", text(&authority.ca()));
    let relay = setup.start();
    let stream = TcpStream::connect(relay.callbacks).unwrap();
    let incident = Incident::begin("client-certificate-refused", &relay)
        .called(&stream.local_addr().unwrap().to_string(), "192.0.2.7:51234");
    let client = HttpsClient::new(&TLS13, &authority.ca(), None);
    // With TLS 1.3, the client may learn of it only when it reads.
    let _ = client
        .connect_over(stream)
        .and_then(|mut connection| connection.answer());
    until("the line", || relay.log_entry("client_certificate_refused"));
    until("the count", || {
        let refused = r#"recall_http_tls_handshakes_total{result="client_certificate"}"#;
        (relay.metric(refused) == "1").then_some(())
    });
    let seen = Seen::of(&relay);
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

#[test]
fn the_certificate_expires_soon() {
    let authority = Authority::new();
    // A day is not over while this runs.
    let soon = SystemTime::now() + Duration::from_secs((10 * 24 + 12) * 3600);
    let (cert, key) = authority.sign_until("relay", ServerAuth, Some(soon));
    let setup = Setup::new()
        .set("RECALL_AUTH__TOKENS", "token")
        .set("RECALL_HTTP__TLS__CERT", text(&cert))
        .set("RECALL_HTTP__TLS__KEY", text(&key));
    let relay = setup.start();
    let incident = Incident::at_start("certificate-expires")
        .called(&relay.callbacks.to_string(), "0.0.0.0:8080")
        .called(&relay.admin.to_string(), "127.0.0.1:8081")
        .called(text(cert.parent().unwrap()), "/etc/recall-relay");
    let line = until("the line", || relay.log_entry("certificate_expiring"));
    assert_eq!(line["days"], 10);
    until("the sink to be up", || relay.log_entry("sink_up"));
    let seen = Seen::of(&relay);
    let (new_cert, new_key) = authority.sign("new", ServerAuth);
    fs::copy(new_key, key).unwrap();
    fs::copy(new_cert, cert).unwrap();
    relay.signal(Signal::SIGHUP);
    until("the new certificate", || relay.log_entry("reloaded"));
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// `http.max_body_bytes` was lowered.
#[test]
fn a_recall_is_too_large() {
    let setup = Setup::new()
        .set("RECALL_HTTP__MAX_BODY_BYTES", "4KiB")
        .set("RECALL_AUTH__TOKENS", "token");
    let relay = setup.start();
    assert_eq!(signed(&relay, "token", 1), 200);
    let incident = Incident::begin("recall-too-large", &relay);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let query = CallbackKind::Group.query(APP, Some(("token", now)));
    let answer = relay.post(&query, padded_recall("a", 2, 5000));
    assert_eq!(answer.status, 413, "{answer:?}");
    assert_eq!(relay.outcome_count("too_large"), 1);
    until("the line", || relay.log_entry("recalls_not_accepted"));
    let seen = Seen::of(&relay);
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// In the console, the callbacks after a recall are switched off.
#[test]
fn no_recalls_arrive_although_callbacks_do() {
    let setup = Setup::new().set("RECALL_AUTH__TOKENS", "token");
    let relay = setup.start();
    let incident = Incident::begin("no-recalls", &relay);
    for _ in 0..3 {
        assert_eq!(other(&relay, "token"), 200);
    }
    assert_eq!(relay.outcome_count("accepted"), 0);
    until("the line", || relay.log_entry("command_ignored"));
    let seen = Seen::of(&relay);
    let beside = setup.with("RECALL_ADMIN__LISTEN", &relay.admin.to_string());
    let check_recalls = || {
        let (code, checked, _) = beside.run(&["check"]);
        assert_eq!(code, 0, "{checked}");
        let mut lines = checked.lines().map(str::to_owned);
        lines.find(|line| line.contains(" recalls: "))
    };
    let line = check_recalls().unwrap();
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/how-to/incidents.md");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains(&line), "{line}");
    // The callbacks are switched on.
    assert_eq!(signed(&relay, "token", 1), 200);
    assert_eq!(check_recalls(), None);
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}
