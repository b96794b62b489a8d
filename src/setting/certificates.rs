//! Reads certificates and private keys from PEM files.

use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::read_bytes;

/// A certificate chain, the own certificate first, and its private key.
#[derive(Debug)]
pub struct CertifiedChain {
    /// The chain.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the first certificate.
    pub key: PrivateKeyDer<'static>,
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

    /// Of the file of a setting.
    pub(crate) fn of_file(key: &str, path: &Path, problem: &dyn fmt::Display) -> Self {
        Self::new(key, format!("{}: {problem}", path.display()))
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

/// Checks that the settings `cert` and `key` are set together, without reading the files.
pub(super) fn check_pair(
    cert: Option<&PathBuf>,
    key: Option<&PathBuf>,
) -> Result<(), SettingError> {
    let (key, other) = match (cert, key) {
        (Some(_), None) => ("cert", "key"),
        (None, Some(_)) => ("key", "cert"),
        _ => return Ok(()),
    };
    let problem = format!("must be set together with {other}");
    Err(SettingError::new(key, problem))
}

/// Reads the certificates in the files of `cert` and `key`, and checks that they belong together.
pub(super) fn identity(cert: &Path, key: &Path) -> Result<CertifiedChain, SettingError> {
    let chain = certificates("cert", cert)?;
    let private = PrivateKeyDer::from_pem_slice(&read("key", key)?).map_err(|problem| {
        let text = match problem {
            pem::Error::NoItemsFound => {
                "has no private key in PKCS #8, PKCS #1 or SEC 1 form; one with a passphrase is not supported"
                    .to_owned()
            }
            other => other.to_string(),
        };
        SettingError::of_file("key", key, &text)
    })?;
    let pair = CertifiedKey::from_der(
        chain.clone(),
        private.clone_key(),
        &ring::default_provider(),
    );
    if let Err(problem) = pair {
        let text = match problem {
            rustls::Error::InconsistentKeys(_) => {
                format!("does not belong to the key in {}", key.display())
            }
            other => other.to_string(),
        };
        return Err(SettingError::of_file("cert", cert, &text));
    }
    Ok(CertifiedChain {
        chain,
        key: private,
    })
}

/// The earliest time at which a certificate of the chain in the file of `cert` expires.
pub(super) fn expiry(chain: &[CertificateDer<'_>], cert: &Path) -> Result<Timestamp, SettingError> {
    let mut first = Timestamp::MAX;
    for (place, certificate) in (1..).zip(chain) {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|problem| {
            let text = format!("certificate {place} cannot be parsed: {problem}");
            SettingError::of_file("cert", cert, &text)
        })?;
        let not_after = parsed.validity().not_after.timestamp();
        first = first.min(Timestamp::from_second(not_after).unwrap_or(Timestamp::MAX));
    }
    Ok(first)
}

/// Reads certificates to trust from the file of the setting `key`.
pub(super) fn authorities(
    key: &str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, SettingError> {
    let authorities = certificates(key, path)?;
    for authority in &authorities {
        let added = RootCertStore::empty().add(authority.clone());
        added.map_err(|problem| SettingError::of_file(key, path, &problem))?;
    }
    Ok(authorities)
}

/// Reads all certificates in the file of the setting `key`.
pub(super) fn certificates(
    key: &str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, SettingError> {
    let pem = read(key, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|problem| SettingError::of_file(key, path, &problem))?;
    if found.is_empty() {
        let problem = &"contains no certificate";
        return Err(SettingError::of_file(key, path, problem));
    }
    Ok(found)
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, SettingError> {
    read_bytes(path).map_err(|problem| SettingError::of_file(key, path, &problem))
}
