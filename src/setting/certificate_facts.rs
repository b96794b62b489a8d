//! What a certificate says about itself.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::certificates::{SettingError, certificates};

/// What a certificate says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whom it is for.
    pub subject: String,
    /// Who has signed it.
    pub issuer: String,
    /// The host names and addresses that it is for.
    pub names: Vec<String>,
    /// When it becomes valid.
    pub not_before: Timestamp,
    /// When it expires.
    pub not_after: Timestamp,
}

impl CertificateFacts {
    /// Parses a certificate.
    ///
    /// # Errors
    /// Says that it cannot be parsed, and why.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|problem| format!("cannot be parsed: {problem}"))?;
        let validity = parsed.validity();
        let time = |seconds: i64, otherwise| Timestamp::from_second(seconds).unwrap_or(otherwise);
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        Ok(Self {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            names: names.iter().filter_map(name).collect(),
            not_before: time(validity.not_before.timestamp(), Timestamp::MIN),
            not_after: time(validity.not_after.timestamp(), Timestamp::MAX),
        })
    }

    /// Parses all certificates in the PEM file of the setting `key`; for each that cannot be parsed, says why. Blocks.
    ///
    /// # Errors
    /// Says why the file cannot be read.
    pub fn read(key: &str, path: &Path) -> Result<Vec<Result<Self, String>>, SettingError> {
        let all = certificates(key, path)?;
        Ok(all.iter().map(Self::of).collect())
    }
}

/// A name that a client compares with the host that it connects to.
fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(Ipv4Addr::from);
            let v6 = <[u8; 16]>::try_from(*bytes).map(Ipv6Addr::from);
            let text = v4.map(|address| address.to_string());
            text.or_else(|_| v6.map(|address| address.to_string())).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_validity_are_read() {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = ["relay.example", "127.0.0.1", "::1"].map(str::to_owned);
        let mut params = rcgen::CertificateParams::new(names.to_vec()).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 2);
        params.not_after = rcgen::date_time_ymd(2027, 1, 2);
        let certificate = params.self_signed(&key).unwrap();
        let facts = CertificateFacts::of(certificate.der()).unwrap();
        assert_eq!(facts.names, names);
        assert_eq!(facts.not_before.to_string(), "2026-01-02T00:00:00Z");
        assert_eq!(facts.not_after.to_string(), "2027-01-02T00:00:00Z");
        assert_eq!(facts.subject, facts.issuer);
        CertificateFacts::of(&b"x".as_slice().into()).unwrap_err();
    }
}
