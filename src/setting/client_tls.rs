//! Certificates of a connection that the relay opens.

use std::fmt;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use super::{optional_path, read_bytes};

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
    pub identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

/// A setting that is missing or unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} {problem}")]
pub struct SettingError {
    /// The setting's key; for an error of a section, the key within it.
    pub key: String,
    /// What is wrong with it; never its value if that is secret.
    pub problem: String,
}

impl SettingError {
    pub(crate) fn new(key: &str, problem: impl Into<String>) -> Self {
        Self {
            key: key.to_owned(),
            problem: problem.into(),
        }
    }

    /// The same error of a key in a section.
    #[must_use]
    pub fn within(self, section: &str) -> Self {
        Self {
            key: format!("{section}.{}", self.key),
            ..self
        }
    }
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
        let (key, other) = match (&self.cert, &self.key) {
            (Some(_), None) => ("cert", "key"),
            (None, Some(_)) => ("key", "cert"),
            _ => return Ok(()),
        };
        let problem = format!("must be set together with {other}");
        Err(SettingError::new(key, problem))
    }

    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// Returns which file cannot be read, or that the certificate does not belong to the key.
    pub fn read(&self) -> Result<Certificates, SettingError> {
        let mut certificates = Certificates::default();
        if let Some(ca) = &self.ca {
            certificates.authorities = chain("ca", ca)?;
            for authority in &certificates.authorities {
                let added = RootCertStore::empty().add(authority.clone());
                added.map_err(|problem| error("ca", ca, &problem))?;
            }
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            let chain = chain("cert", cert)?;
            let private = PrivateKeyDer::from_pem_slice(&read("key", key)?)
                .map_err(|problem| error("key", key, &problem))?;
            CertifiedKey::from_der(
                chain.clone(),
                private.clone_key(),
                &ring::default_provider(),
            )
            .map_err(|problem| error("cert", cert, &problem))?;
            certificates.identity = Some((chain, private));
        }
        Ok(certificates)
    }
}

fn chain(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SettingError> {
    let pem = read(key, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|problem| error(key, path, &problem))?;
    if found.is_empty() {
        return Err(error(key, path, &"contains no certificate"));
    }
    Ok(found)
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, SettingError> {
    read_bytes(path).map_err(|problem| error(key, path, &problem))
}

fn error(key: &str, path: &Path, problem: &dyn fmt::Display) -> SettingError {
    SettingError::new(key, format!("{}: {problem}", path.display()))
}
