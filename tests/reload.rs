//! Settings that change while the relay runs: on SIGHUP, and when a file changes that a setting names.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use rcgen::ExtendedKeyUsagePurpose;
use recall_relay::vendor::CallbackKind;
use rig::kafka::{PASSWORD, USER};
use rig::{
    APP, Authority, Broker, Connection, Kafka, RabbitMq, Relay, Setup, assert_kept, recall,
    under_load, until,
};
use serde_json::Value;

/// The status of the answer to a recall that is signed with this token, on a connection of its own: one with a wrong
/// signature is closed.
fn signed(relay: &Relay, app: u64, token: &str) -> u16 {
    let mut connection = Connection::open(relay.callbacks).unwrap();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let query = CallbackKind::Group.query(app, Some((token, now)));
    let body = recall("g", 1);
    let answer = connection.request("POST", &format!("/?{query}"), body.as_bytes());
    answer.unwrap().status
}

/// Waits for the line number `count` with this code.
fn entry(relay: &Relay, code: &str, count: usize) -> Value {
    until(&format!("line {count} of {code}"), || {
        relay.log_entries(code).into_iter().nth(count - 1)
    })
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn tokens_that_change_in_their_file_take_effect_without_a_restart() {
    let setup = Setup::new();
    let file = setup.folder().join("tokens");
    fs::write(&file, "old").unwrap();
    let relay = setup.set("RECALL_AUTH__TOKENS_FILE", text(&file)).start();
    let both = || ["old", "new"].map(|token| signed(&relay, APP, token));
    assert_eq!(both(), [200, 403]);

    // As Kubernetes does it: a new file in place of the old one.
    let new = setup_file(&file, "new,old");
    entry(&relay, "reloaded", 1);
    assert_eq!(both(), [200, 200]);

    // An empty file would switch signatures off.
    fs::write(&new, "").unwrap();
    let failed = entry(&relay, "reload_failed", 1);
    assert!(
        failed["reason"].as_str().unwrap().contains("auth.tokens"),
        "{failed}"
    );
    assert_eq!(both(), [200, 200]);
    assert_eq!(relay.metric("recall_config_last_reload_successful"), "0");

    fs::write(&new, "new").unwrap();
    entry(&relay, "reloaded", 2);
    assert_eq!(both(), [403, 200]);
    assert_eq!(relay.metric("recall_config_last_reload_successful"), "1");
    assert!(!relay.log().contains("\"new\""));
    relay.stop();
}

/// Replaces a file by a new one; returns its path.
fn setup_file(path: &Path, content: &str) -> std::path::PathBuf {
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(&new, path).unwrap();
    path.to_owned()
}

#[test]
fn sighup_applies_what_can_change_and_names_the_rest() {
    let setup = Setup::new();
    let file = setup.folder().join("relay.toml");
    let write = |apps: &str, token: &str, more: &str| {
        let text = format!("sdk_app_ids = {apps}\n{more}\nauth.tokens = \"{token}\"\n");
        fs::write(&file, text).unwrap();
    };
    write("[7]", "old", "");
    // What the environment sets cannot change.
    let setup = setup.set("RECALL_CONFIG", text(&file));
    let relay = setup.without("RECALL_SDK_APP_IDS").start();
    let answers =
        || [(7, "old"), (8, "old"), (8, "new")].map(|(app, token)| signed(&relay, app, token));
    assert_eq!(answers(), [200, 403, 403]);

    write(
        "[8]",
        "new",
        "log.filter = \"debug\"\nhttp.path = \"/im\"\nspool.retention = \"1h\"",
    );
    relay.signal(Signal::SIGHUP);
    let reloaded = entry(&relay, "reloaded", 1);
    assert_eq!(reloaded["cause"], "SIGHUP");
    let waiting = entry(&relay, "restart_needed", 1);
    assert_eq!(waiting["settings"], "http.path, spool.retention");
    assert_eq!(answers(), [403, 403, 200]);
    assert!(relay.log().contains("\"DEBUG\""));

    // Nothing of a wrong configuration takes effect.
    write(
        "[7]",
        "old",
        "log.filter = \"info\"\nhttp.read_timeout = \"soon\"",
    );
    relay.signal(Signal::SIGHUP);
    let failed = entry(&relay, "reload_failed", 1);
    assert_eq!(failed["level"], "ERROR");
    assert!(
        failed["reason"]
            .as_str()
            .unwrap()
            .contains("http.read_timeout"),
        "{failed}"
    );
    assert_eq!(answers(), [403, 403, 200]);
    relay.stop();
}

/// Sends a recall of this number, and waits until the broker has confirmed it.
fn deliver(broker: &impl Broker, relay: &Relay, number: u64) {
    relay.recalls("g", number..=number);
    relay.until_drained(broker.sink());
}

/// The broker has the recalls up to this number, each once.
fn assert_delivered(broker: &impl Broker, name: &str, upto: usize) {
    assert_eq!(broker.recalls(name, upto).len(), upto);
}

#[test]
fn rabbitmq_password_changes_while_a_session_lives() {
    let rabbitmq = RabbitMq::shared();
    rabbitmq.ctl(&["add_user", "changing", "first"]);
    rabbitmq.ctl(&["set_permissions", "changing", ".*", ".*", ".*"]);
    let uri = |password: &str| {
        rabbitmq
            .uri()
            .replace("guest:guest", &format!("changing:{password}"))
    };
    let setup = Setup::new();
    let file = setup.folder().join("uri");
    fs::write(&file, uri("first")).unwrap();
    let setup = rabbitmq
        .settings(setup, "password")
        .without("RECALL_RABBITMQ__URI");
    let relay = setup.set("RECALL_RABBITMQ__URI_FILE", text(&file)).start();
    deliver(&*rabbitmq, &relay, 1);

    // The file first: the session is made anew before the old one can fail.
    rabbitmq.ctl(&["change_password", "changing", "second"]);
    fs::write(&file, uri("second")).unwrap();
    entry(&relay, "session_renewed", 1);
    deliver(&*rabbitmq, &relay, 2);
    assert_eq!(relay.down_entries(), Vec::<Value>::new());

    // The broker first: the relay is locked out until the file follows.
    rabbitmq.ctl(&["change_password", "changing", "third"]);
    rabbitmq.ctl(&["close_all_connections", "rotated"]);
    relay.until_sink("rabbitmq", "down");
    relay.recalls("g", 3..=3);
    fs::write(&file, uri("third")).unwrap();
    relay.until_drained("rabbitmq");
    relay.until_sink("rabbitmq", "up");
    assert_delivered(&*rabbitmq, "password", 3);
    for password in ["first", "second", "third"] {
        assert!(!relay.log().contains(&format!("changing:{password}")));
    }
    relay.stop();
}

#[test]
fn a_session_is_renewed_under_load_without_a_repeated_event() {
    let rabbitmq = RabbitMq::shared();
    let setup = Setup::new();
    let file = setup.folder().join("uri");
    fs::write(&file, rabbitmq.uri()).unwrap();
    let setup = rabbitmq
        .settings(setup, "renewed")
        .without("RECALL_RABBITMQ__URI");
    let relay = setup.set("RECALL_RABBITMQ__URI_FILE", text(&file)).start();
    let sent = under_load(&relay, || {
        for renewal in 1..=3 {
            let uri = format!("{}/%2f?heartbeat={renewal}0", rabbitmq.uri());
            fs::write(&file, uri).unwrap();
            entry(&relay, "session_renewed", renewal);
        }
    });
    relay.until_drained("rabbitmq");
    let received = rabbitmq.recalls("renewed", sent.len());
    assert_kept(&sent, &received);
    assert_eq!(received.len(), sent.len());
    relay.stop();
}

#[test]
fn kafka_password_changes_while_a_session_lives() {
    if !Kafka::has_scram("kafka_password_changes_while_a_session_lives") {
        return; // With PLAIN, the password cannot change while the broker runs.
    }
    // A session must show the password again every 3 s.
    let kafka = Kafka::start_with(&[(
        "listener.name.sasl.scram-sha-256.connections.max.reauth.ms",
        "3000",
    )]);
    let setup = kafka.settings(Setup::new(), "password");
    let file = setup.folder().join("password");
    fs::write(&file, PASSWORD).unwrap();
    let property = |name: &str| format!("RECALL_KAFKA__PROPERTIES__{name}");
    let relay = setup
        .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", &kafka.sasl_servers())
        .set(&property("SECURITY_PROTOCOL"), "SASL_PLAINTEXT")
        .set(&property("SASL_MECHANISM"), "SCRAM-SHA-256")
        .set(&property("SASL_USERNAME"), USER)
        .set(&property("SASL_PASSWORD_FILE"), text(&file))
        .start();
    deliver(&kafka, &relay, 1);

    // The broker first: the relay is locked out until the file follows.
    kafka.set_password("second");
    relay.until_sink("kafka", "down");
    relay.recalls("g", 2..=2);
    fs::write(&file, "second").unwrap();
    relay.until_drained("kafka");
    relay.until_sink("kafka", "up");

    // Both at once, while the session lives.
    kafka.set_password("third");
    fs::write(&file, "third").unwrap();
    until("the session with the third password", || {
        (relay.log_entries("reloaded").len() == 2).then_some(())
    });
    deliver(&kafka, &relay, 3);
    assert_delivered(&kafka, "password", 3);
    relay.stop();
}

/// How long the first certificate of a client is valid.
const VALIDITY: Duration = Duration::from_secs(25);

/// A client's certificate expires while its session lives; the next session needs the new one, which is taken when both
/// files have been replaced.
fn assert_certificates_are_renewed<B: Broker>(
    broker: &mut B,
    authority: &Authority,
    settings: impl FnOnce(&Path, &Path) -> Setup,
) {
    let name = "im.message.recalled";
    let until = SystemTime::now() + VALIDITY;
    let (cert, key) =
        authority.sign_until("client", ExtendedKeyUsagePurpose::ClientAuth, Some(until));
    let relay = settings(&cert, &key).start();
    deliver(broker, &relay, 1);
    let sink = broker.sink();

    // Half of a pair is not taken, and the session lives on.
    let (new_cert, new_key) = authority.sign("new", ExtendedKeyUsagePurpose::ClientAuth);
    let expired = fs::read(&cert).unwrap();
    fs::copy(&new_cert, &cert).unwrap();
    entry(&relay, "reload_failed", 1);
    deliver(broker, &relay, 2);
    fs::write(&cert, expired).unwrap();
    entry(&relay, "reloaded", 1);
    let before = relay.log_entries("session_renewed").len();

    // It expires, and the broker ends the session.
    rig::until("the certificate to expire", || {
        (SystemTime::now() > until).then_some(())
    });
    broker.stop();
    broker.resume();
    relay.recalls("g", 3..=3);
    let reason = |down: &Value| down["reason"].as_str().unwrap_or_default().to_lowercase();
    rig::until("the sink to be down because of the certificate", || {
        let down = relay.readiness()["sinks"][sink].clone();
        let is_told = ["certificate", "ssl", "tls"]
            .iter()
            .any(|word| reason(&down).contains(word));
        (down["state"] == "down" && is_told).then_some(())
    });

    fs::copy(&new_key, &key).unwrap();
    fs::copy(&new_cert, &cert).unwrap();
    relay.until_drained(sink);
    relay.until_sink(sink, "up");

    // And while a session lives.
    let renewed = relay.log_entries("session_renewed").len();
    assert!(renewed >= before);
    let (newer_cert, newer_key) = authority.sign("newer", ExtendedKeyUsagePurpose::ClientAuth);
    fs::copy(&newer_cert, &cert).unwrap();
    fs::copy(&newer_key, &key).unwrap();
    entry(&relay, "session_renewed", renewed + 1);
    deliver(broker, &relay, 4);
    assert_delivered(broker, name, 4);
    relay.stop();
}

#[test]
fn rabbitmq_certificates_expire_and_are_renewed() {
    let authority = Authority::new();
    let mut rabbitmq = authority.rabbitmq();
    let uri = rabbitmq.tls_uri();
    assert_certificates_are_renewed(&mut rabbitmq, &authority, |cert, key| {
        Setup::new()
            .set("RECALL_RABBITMQ__URI", &uri)
            .set("RECALL_RABBITMQ__TLS__CA", text(&authority.ca()))
            .set("RECALL_RABBITMQ__TLS__CERT", text(cert))
            .set("RECALL_RABBITMQ__TLS__KEY", text(key))
    });
}

#[test]
fn kafka_certificates_expire_and_are_renewed() {
    let authority = Authority::new();
    let mut kafka = authority.kafka();
    let servers = kafka.tls_servers();
    assert_certificates_are_renewed(&mut kafka, &authority, |cert, key| {
        let property = |name: &str| format!("RECALL_KAFKA__PROPERTIES__{name}");
        Setup::new()
            .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", &servers)
            .set(&property("SECURITY_PROTOCOL"), "SSL")
            .set(&property("SSL_CA_LOCATION"), text(&authority.ca()))
            .set(&property("SSL_CERTIFICATE_LOCATION"), text(cert))
            .set(&property("SSL_KEY_LOCATION"), text(key))
    });
}
