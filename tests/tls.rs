//! TLS connections to brokers, with a private certificate authority and client certificates.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::path::Path;

use rcgen::ExtendedKeyUsagePurpose;
use rig::{Authority, Broker, Setup};

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
    let rabbitmq = authority.rabbitmq();
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
    let kafka = authority.kafka();
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
