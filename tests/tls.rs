//! TLS connections to brokers, with a private certificate authority and client certificates.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rig::{Broker, Kafka, RabbitMq, Setup};
use tempfile::TempDir;

/// A certificate authority, with its certificates as PEM files.
struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Self {
            folder,
            issuer: Issuer::new(params, key),
        }
    }

    /// Signs a certificate for localhost; returns the paths of the certificate and its key.
    fn sign(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |suffix: &str| self.folder.path().join(format!("{name}.{suffix}"));
        fs::write(file("pem"), certificate.pem()).unwrap();
        fs::write(file("key"), key.serialize_pem()).unwrap();
        (file("pem"), file("key"))
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A relay that does not trust the authority publishes nothing and reports why. With the authority and a client
/// certificate, it publishes what is in the spool.
fn assert_certificates_are_required(
    broker: &impl Broker,
    without: &Setup,
    with: impl FnOnce(&Setup) -> Setup,
) {
    let sink = broker.sink();
    let relay = without.start();
    let sent = relay.recalls("g", 1..=1);
    relay.until_down(sink, "certificate");
    // Killed, not stopped: OpenSSL's exit handlers may run while librdkafka is in a handshake, and the process then
    // dies by a signal at the very end.
    relay.kill();

    let relay = with(without).start();
    relay.until_drained(sink);
    assert_eq!(broker.recalls("im.message.recalled", 1), sent);
    relay.stop();
}

#[test]
fn rabbitmq_connects_with_private_ca_and_client_certificate() {
    let authority = Authority::new();
    let (cert, key) = authority.sign("server", ExtendedKeyUsagePurpose::ServerAuth);
    let rabbitmq = RabbitMq::start_with(&[
        &format!("ssl_options.cacertfile = {}", text(&authority.ca())),
        &format!("ssl_options.certfile = {}", text(&cert)),
        &format!("ssl_options.keyfile = {}", text(&key)),
        "ssl_options.verify = verify_peer",
        "ssl_options.fail_if_no_peer_cert = true",
    ]);
    let without = Setup::new().set("RECALL_RABBITMQ__URI", &rabbitmq.tls_uri());
    let (cert, key) = authority.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
    assert_certificates_are_required(&rabbitmq, &without, |setup| {
        setup
            .with("RECALL_RABBITMQ__TLS__CA", text(&authority.ca()))
            .set("RECALL_RABBITMQ__TLS__CERT", text(&cert))
            .set("RECALL_RABBITMQ__TLS__KEY", text(&key))
    });
}

#[test]
fn kafka_connects_with_private_ca_and_client_certificate() {
    let authority = Authority::new();
    let (cert, key) = authority.sign("server", ExtendedKeyUsagePurpose::ServerAuth);
    let inline = |path: &Path| fs::read_to_string(path).unwrap().trim().replace('\n', " ");
    let listener = |name: &str| format!("listener.name.tls.ssl.{name}");
    let properties = [
        (listener("keystore.type"), "PEM".to_owned()),
        (listener("keystore.certificate.chain"), inline(&cert)),
        (listener("keystore.key"), inline(&key)),
        (listener("truststore.type"), "PEM".to_owned()),
        (listener("truststore.certificates"), inline(&authority.ca())),
        (listener("client.auth"), "required".to_owned()),
    ];
    let properties: Vec<(&str, &str)> = properties
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let kafka = Kafka::start_with(&properties);
    let (cert, key) = authority.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
    let without = Setup::new()
        .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", &kafka.tls_servers())
        .set("RECALL_KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SSL");
    assert_certificates_are_required(&kafka, &without, |setup| {
        let property = |name: &str| format!("RECALL_KAFKA__PROPERTIES__SSL_{name}");
        setup
            .with(&property("CA_LOCATION"), text(&authority.ca()))
            .set(&property("CERTIFICATE_LOCATION"), text(&cert))
            .set(&property("KEY_LOCATION"), text(&key))
    });
}
