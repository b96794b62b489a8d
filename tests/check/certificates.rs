//! The certificates in the relay's own files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use rcgen::ExtendedKeyUsagePurpose::ServerAuth;
use rcgen::{CertificateParams, KeyPair};

use super::rig::{Authority, Backend, Setup};
use super::{check, check_all, text};

fn with_certificate(setup: &Setup, cert: &Path, key: &Path) -> Setup {
    setup
        .with("RECALL_HTTP__TLS__CERT", text(cert))
        .set("RECALL_HTTP__TLS__KEY", text(key))
}

fn in_days(days: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(days * 24 * 60 * 60 + 60)
}

/// Writes a certificate that has signed itself.
pub fn self_signed(folder: &Path, name: &str, params: &CertificateParams) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let file = |suffix: &str| folder.join(format!("{name}.{suffix}"));
    fs::write(file("pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(file("key"), key.serialize_pem()).unwrap();
    (file("pem"), file("key"))
}

#[test]
fn the_listeners_certificate_is_judged() {
    let authority = Authority::new();
    let setup = Setup::new();
    let (fine, fine_key) = authority.sign("fine", ServerAuth);
    let until = |name: &str, time| authority.sign_until(name, ServerAuth, Some(time));
    let past = SystemTime::now() - Duration::from_secs(60);
    let with = |(cert, key): (PathBuf, PathBuf)| with_certificate(&setup, &cert, &key);
    let mut early = CertificateParams::new(vec!["relay.example".to_owned()]).unwrap();
    early.not_before = in_days(1).into();
    let nameless = CertificateParams::new(Vec::new()).unwrap();
    let foreign_key = until("other", in_days(99)).1;
    let [
        fine,
        soon,
        later,
        expired,
        early,
        nameless,
        foreign,
        missing,
    ] = check_all([
        with((fine.clone(), fine_key.clone())),
        with(until("soon", in_days(13))),
        with(until("later", in_days(15))),
        with(until("expired", past)),
        with(self_signed(setup.folder(), "early", &early)),
        with(self_signed(setup.folder(), "nameless", &nameless)),
        with((fine, foreign_key)),
        with(("/nowhere.pem".into(), fine_key)),
    ]);
    let cert = "http.tls.cert";
    fine.assert_no_failure();
    fine.assert(
        "certificates",
        cert,
        "ok",
        "for 127.0.0.1, localhost, valid until",
    );
    soon.assert_no_failure();
    soon.assert(
        "certificates",
        cert,
        "warning",
        "CN=soon: expires in 13 days",
    );
    later.assert("certificates", cert, "ok", "valid until");
    expired.assert_only_failed("certificates", cert, "CN=expired: expired at");
    early.assert_only_failed("certificates", cert, "not valid before");
    nameless.assert_only_failed("certificates", cert, "no subject alternative name");
    foreign.assert_only_failed("certificates", "files", "does not belong to the key");
    missing.assert_only_failed("certificates", "files", cert);
}

#[test]
fn the_order_of_a_chain_is_judged() {
    let [authority, other] = [Authority::new(), Authority::new()];
    let setup = Setup::new();
    let (cert, key) = authority.sign("relay", ServerAuth);
    let (foreign, _) = other.sign("foreign", ServerAuth);
    let chain = setup.folder().join("chain.pem");
    let write = |parts: &[&Path]| {
        let parts = parts.iter().map(|part| fs::read_to_string(part).unwrap());
        fs::write(&chain, parts.collect::<String>()).unwrap();
        check(&with_certificate(&setup, &chain, &key), &[])
    };
    let checked = write(&[&cert, &authority.ca()]);
    checked.assert("certificates", "http.tls.cert", "ok", "valid until");
    let checked = write(&[&cert, &foreign]);
    checked.assert_no_failure();
    let text = "certificate 1 was not issued by certificate 2";
    checked.assert("certificates", "http.tls.cert", "warning", text);
}

#[test]
fn every_other_file_is_judged() {
    let authority = Authority::new();
    let past = SystemTime::now() - Duration::from_secs(60);
    let (expired, key) = authority.sign_until("expired", ServerAuth, Some(past));
    let (fine, fine_key) = authority.sign("fine", ServerAuth);
    let setup = with_certificate(&Setup::new(), &fine, &fine_key)
        .set("RECALL_HTTP__TLS__CLIENT_CA", text(&authority.ca()))
        .set("RECALL_UPSTREAM__URL", "https://127.0.0.1:1/")
        .set("RECALL_UPSTREAM__TLS__CA", text(&authority.ca()))
        .set("RECALL_UPSTREAM__TLS__CERT", text(&expired))
        .set("RECALL_UPSTREAM__TLS__KEY", text(&key))
        .set("RECALL_RABBITMQ__URI", "amqps://127.0.0.1:1")
        .set("RECALL_RABBITMQ__TLS__CA", text(&expired))
        .set("RECALL_RABBITMQ__TLS__CERT", text(&fine))
        .set("RECALL_RABBITMQ__TLS__KEY", text(&fine_key))
        .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
        .set("RECALL_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SSL")
        .set("RECALL_KAFKA__PROPERTIES__SSL_CA_LOCATION", text(&expired));
    let checked = check(&setup, &[]);
    for key in ["http.tls.client_ca", "upstream.tls.ca"] {
        checked.assert("certificates", key, "ok", "1 authorities, valid until");
    }
    checked.assert("certificates", "rabbitmq.tls.cert", "ok", "valid until");
    for key in [
        "upstream.tls.cert",
        "rabbitmq.tls.ca",
        "kafka.properties.ssl.ca.location",
    ] {
        checked.assert("certificates", key, "failed", "expired at");
    }

    let setup = setup
        .with("RECALL_UPSTREAM__TLS__KEY", text(&fine_key))
        .set("RECALL_RABBITMQ__TLS__CA", "/nowhere.pem")
        .set("RECALL_KAFKA__PROPERTIES__SSL_CA_LOCATION", "/nowhere.pem");
    let checked = check(&setup, &[]);
    for text in ["upstream.tls.cert", "rabbitmq.tls.ca", "ssl.ca.location"] {
        checked.assert("certificates", "files", "failed", text);
    }
    checked.assert("upstream", "upstream.url", "failed", "upstream.tls.cert");
    checked.assert("rabbitmq", "tls", "failed", "rabbitmq.tls.ca");
}

#[test]
fn an_expired_certificate_beside_a_valid_one_is_a_warning() {
    let authority = Authority::new();
    let past = SystemTime::now() - Duration::from_secs(60);
    let (expired, expired_key) = authority.sign_until("expired", ServerAuth, Some(past));
    let (fine, fine_key) = authority.sign("fine", ServerAuth);
    let setup = Setup::new();
    let join = |name: &str, parts: &[&str]| {
        let path = setup.folder().join(name);
        fs::write(&path, parts.concat()).unwrap();
        path
    };
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let (old, new) = (read(&expired), read(&authority.ca()));
    let bundle = join("bundle.pem", &[&old, &new]);
    let old_bundle = join("old.pem", &[&old, &old]);
    let unreadable = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let partial = join("odd.pem", &[&new, unreadable]);
    let chain = join("chain.pem", &[&read(&fine), &old]);
    let old_chain = join("old-chain.pem", &[&old, &new]);
    let with = |chain: &Path, key: &Path, ca: &Path| {
        with_certificate(&setup, chain, key)
            .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
            .set("RECALL_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SSL")
            .set("RECALL_KAFKA__PROPERTIES__SSL_CA_LOCATION", text(ca))
            .set("RECALL_HTTP__TLS__CLIENT_CA", text(&bundle))
    };
    let [rotated, old, odd, folder] = check_all([
        with(&chain, &fine_key, &bundle),
        with(&old_chain, &expired_key, &old_bundle),
        with(&fine, &fine_key, &partial),
        // librdkafka takes a folder.
        with(&fine, &fine_key, setup.folder()),
    ]);
    let (own, authorities) = ("http.tls.cert", "kafka.properties.ssl.ca.location");
    for key in [authorities, "http.tls.client_ca"] {
        let first = "certificate 1, CN=expired: expired at";
        rotated.assert("certificates", key, "warning", first);
    }
    let second = "certificate 2, CN=expired: expired at";
    rotated.assert("certificates", own, "warning", second);
    for line in rotated.of("certificates", "") {
        assert_ne!(line["result"], "failed", "{rotated}");
    }
    for place in [1, 2] {
        let expired = format!("certificate {place}, CN=expired: expired at");
        old.assert("certificates", authorities, "failed", &expired);
    }
    let first = "certificate 1, CN=expired: expired at";
    old.assert("certificates", own, "failed", first);
    let unread = "its certificates were not checked: ";
    folder.assert("certificates", authorities, "untried", unread);
    let second = "certificate 2 cannot be parsed: ";
    odd.assert("certificates", authorities, "warning", second);
}

/// As on a disk that hangs: nobody ever writes to the pipe.
#[test]
fn a_file_that_never_ends_is_named_and_the_other_areas_are_checked() {
    let setup = Setup::new();
    let pipe = setup.folder().join("pipe.pem");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let authority = Authority::new();
    let (fine, fine_key) = authority.sign("fine", ServerAuth);
    let server = Backend::start();
    let setup = with_certificate(&setup, &fine, &fine_key)
        .set("RECALL_UPSTREAM__URL", "https://127.0.0.1:1/")
        .set("RECALL_UPSTREAM__TLS__CA", text(&pipe))
        .set(
            "RECALL_KAFKA__BOOTSTRAP_SERVERS",
            &server.address().to_string(),
        )
        .set("RECALL_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SSL")
        .set("RECALL_KAFKA__PROPERTIES__SSL_CA_LOCATION", text(&pipe));
    let began = Instant::now();
    let checked = check(&setup, &[]);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(40), "{took:?}");
    let hangs = "pipe.pem did not end within 5 s";
    for key in ["upstream.tls.ca", "kafka.properties.ssl.ca.location"] {
        checked.assert("certificates", key, "failed", hangs);
    }
    checked.assert("certificates", "files", "untried", "would hang");
    checked.assert("certificates", "http.tls.cert", "ok", "valid until");
    let unread = "upstream.tls.ca could not be read within 5 s";
    checked.assert("upstream", "upstream.url", "failed", unread);
    let unread = "could not be read within 7 s";
    checked.assert("kafka", "cluster", "failed", unread);
}
