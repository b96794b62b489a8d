//! Certificates of a listener.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::ring;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};

use super::certificates::{self, CertifiedChain, SettingError};
use super::optional_path;

/// Certificates, as PEM files that can be replaced while the relay runs. Without them there is no TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerTls {
    /// The listener's certificate, followed by those of intermediate authorities.
    #[serde(deserialize_with = "optional_path")]
    pub cert: Option<PathBuf>,
    /// The listener's private key.
    #[serde(deserialize_with = "optional_path")]
    pub key: Option<PathBuf>,
    /// Certificate authorities of clients. If it is set, a client needs a certificate from one of them.
    #[serde(deserialize_with = "optional_path")]
    pub client_ca: Option<PathBuf>,
}

/// What the files of a [`ServerTls`] contain, ready for handshakes.
#[derive(Debug, Clone)]
pub struct ServerCertificate {
    /// What rustls needs.
    pub config: Arc<ServerConfig>,
    /// The file of the certificate.
    pub path: PathBuf,
    /// The earliest time at which a certificate of the chain expires.
    pub expires: Timestamp,
}

impl ServerTls {
    /// The files.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let Self {
            cert,
            key,
            client_ca,
        } = self;
        [cert, key, client_ca]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Checks which settings are set together, without reading the files.
    ///
    /// # Errors
    /// Names the key that lacks another.
    pub fn check(&self) -> Result<(), SettingError> {
        certificates::check_pair(self.cert.as_ref(), self.key.as_ref())?;
        if self.client_ca.is_some() && self.cert.is_none() {
            let problem = "needs cert and key; without them there is no TLS";
            return Err(SettingError::new("client_ca", problem));
        }
        Ok(())
    }

    /// Reads the files. None if none is set. Blocks.
    ///
    /// # Errors
    /// Returns which file cannot be read or used, or that the certificate does not belong to the key.
    pub fn read(&self) -> Result<Option<ServerCertificate>, SettingError> {
        let (Some(cert), Some(key)) = (&self.cert, &self.key) else {
            return Ok(None);
        };
        let CertifiedChain {
            chain,
            key: private,
        } = certificates::identity(cert, key)?;
        let expires = certificates::expiry(&chain, cert)?;
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|problem| SettingError::of_file("cert", cert, &problem))?;
        let config = match &self.client_ca {
            None => config.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(certificates::authorities("client_ca", ca)?);
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                let verifier =
                    verifier.map_err(|problem| SettingError::of_file("client_ca", ca, &problem))?;
                config.with_client_cert_verifier(verifier)
            }
        };
        let mut config = config
            .with_single_cert(chain, private)
            .map_err(|problem| SettingError::of_file("cert", cert, &problem))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if self.client_ca.is_some() {
            // A resumed session would let in a client whose certificate has expired in the meantime.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Some(ServerCertificate {
            config: Arc::new(config),
            path: cert.clone(),
            expires,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `rsa.key` is in PKCS #1 form, and `ec.key` in SEC 1 form. Other tests use PKCS #8.
    fn read(cert: &str, key: &str) -> Result<Option<ServerCertificate>, SettingError> {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/keys"));
        let tls = ServerTls {
            cert: Some(folder.join(cert)),
            key: Some(folder.join(key)),
            client_ca: None,
        };
        tls.read()
    }

    #[test]
    fn a_key_may_have_any_of_the_usual_forms() {
        for (cert, key) in [("rsa.crt", "rsa.key"), ("ec.crt", "ec.key")] {
            let certificate = read(cert, key).unwrap().unwrap();
            // They are valid for 36,500 days.
            let year = certificate.expires.to_string();
            assert!(year.starts_with("2126-"), "{year}");
            assert_eq!(certificate.config.alpn_protocols, [b"http/1.1"]);
        }
        for (cert, key) in [("rsa.crt", "ec.key"), ("ec.crt", "rsa.key")] {
            let error = read(cert, key).unwrap_err();
            assert!(
                error.problem.contains("does not belong to the key"),
                "{error}"
            );
        }
        let error = read("rsa.crt", "rsa-encrypted.key").unwrap_err();
        assert_eq!(error.key, "key");
    }
}
