//! A certificate authority for tests, and brokers that require its certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

use super::{Kafka, RabbitMq};

/// A certificate authority, with its certificates as PEM files.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
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
    pub fn sign(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> (PathBuf, PathBuf) {
        self.sign_until(name, purpose, None)
    }

    /// The same, for a certificate that expires.
    pub fn sign_until(
        &self,
        name: &str,
        purpose: ExtendedKeyUsagePurpose,
        expires: Option<SystemTime>,
    ) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![purpose];
        if let Some(expires) = expires {
            params.not_after = expires.into();
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |suffix: &str| self.folder.path().join(format!("{name}.{suffix}"));
        fs::write(file("pem"), certificate.pem()).unwrap();
        fs::write(file("key"), key.serialize_pem()).unwrap();
        (file("pem"), file("key"))
    }

    /// The path of the authority's own certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A node that requires a client's certificate on its TLS port.
    pub fn rabbitmq(&self) -> RabbitMq {
        let (cert, key) = self.sign("server", ExtendedKeyUsagePurpose::ServerAuth);
        let option = |name: &str, path: &Path| format!("ssl_options.{name} = {}", path.display());
        RabbitMq::start_with(&[
            &option("cacertfile", &self.ca()),
            &option("certfile", &cert),
            &option("keyfile", &key),
            "ssl_options.verify = verify_peer",
            "ssl_options.fail_if_no_peer_cert = true",
        ])
    }

    /// A broker that requires a client's certificate on its TLS port.
    pub fn kafka(&self) -> Kafka {
        self.kafka_with(&[])
    }

    /// The same with more lines in `server.properties`.
    pub fn kafka_with(&self, more: &[(&str, &str)]) -> Kafka {
        let (cert, key) = self.sign("server", ExtendedKeyUsagePurpose::ServerAuth);
        let inline = |path: &Path| fs::read_to_string(path).unwrap().trim().replace('\n', " ");
        let properties = [
            ("keystore.type", "PEM".to_owned()),
            ("keystore.certificate.chain", inline(&cert)),
            ("keystore.key", inline(&key)),
            ("truststore.type", "PEM".to_owned()),
            ("truststore.certificates", inline(&self.ca())),
            ("client.auth", "required".to_owned()),
        ]
        .map(|(name, value)| (format!("listener.name.tls.ssl.{name}"), value));
        let properties: Vec<(&str, &str)> = properties
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .chain(more.iter().copied())
            .collect();
        Kafka::start_with(&properties)
    }
}
