//! Certificates of a connection that the relay opens.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};

use super::certificates::{self, CertifiedChain, SettingError};
use super::optional_path;

/// Certificates, as PEM files that can be replaced while the relay runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientTls {
    /// Certificate authorities to trust in addition to the system's.
    #[serde(deserialize_with = "optional_path")]
    pub ca: Option<PathBuf>,
    /// The client's certificate.
    #[serde(deserialize_with = "optional_path")]
    pub cert: Option<PathBuf>,
    /// The client's private key.
    #[serde(deserialize_with = "optional_path")]
    pub key: Option<PathBuf>,
}

/// What the files of a [`ClientTls`] contain.
#[derive(Debug, Default)]
pub struct Certificates {
    /// The authorities to trust in addition to the system's.
    pub authorities: Vec<CertificateDer<'static>>,
    /// The client's certificate chain and its private key.
    pub identity: Option<CertifiedChain>,
}

impl ClientTls {
    /// Whether any file is set.
    #[must_use]
    pub const fn is_set(&self) -> bool {
        self.ca.is_some() || self.cert.is_some() || self.key.is_some()
    }

    /// The files.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let Self { ca, cert, key } = self;
        [ca, cert, key].into_iter().flatten().cloned().collect()
    }

    /// Checks that certificate and key are set together, without reading them.
    ///
    /// # Errors
    /// Names the key that lacks the other.
    pub fn check_pair(&self) -> Result<(), SettingError> {
        certificates::check_pair(self.cert.as_ref(), self.key.as_ref())
    }

    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// Returns which file cannot be read, or that the certificate does not belong to the key.
    pub fn read(&self) -> Result<Certificates, SettingError> {
        let mut found = Certificates::default();
        if let Some(ca) = &self.ca {
            found.authorities = certificates::authorities("ca", ca)?;
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            found.identity = Some(certificates::identity(cert, key)?);
        }
        Ok(found)
    }

    /// Reads the files for a client that also trusts the authorities in `roots`. Blocks.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn client_config(&self, mut roots: RootCertStore) -> Result<ClientConfig, SettingError> {
        let found = self.read()?;
        for authority in found.authorities {
            let added = roots.add(authority);
            added.map_err(|problem| SettingError::new("ca", problem.to_string()))?;
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|problem| SettingError::new("ca", problem.to_string()))?
            .with_root_certificates(roots);
        match found.identity {
            Some(CertifiedChain { chain, key }) => tls
                .with_client_auth_cert(chain, key)
                .map_err(|problem| SettingError::new("cert", problem.to_string())),
            None => Ok(tls.with_no_client_auth()),
        }
    }
}

/// The authorities that the system trusts. Blocks.
#[must_use]
pub fn system_authorities() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}
