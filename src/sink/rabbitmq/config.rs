//! Settings of the RabbitMQ sink.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use lapin::uri::AMQPScheme;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use super::broker_uri::BrokerUri;
use crate::setting::{self, List, Timeout};

/// Settings of the RabbitMQ sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `amqp://user:password@host:5672/vhost`, or `amqps://` for TLS. Several URIs, separated by commas, are tried in
    /// turn.
    pub uri: List<BrokerUri>,
    /// Certificates.
    pub tls: Tls,
    /// The topic exchange that events are published to.
    pub exchange: ShortName,
    /// The queue that is bound to the exchange with `#`; if empty, the relay has no queue of its own.
    pub queue: ShortName,
    /// The queue of dead letters: callbacks that could not be parsed, and events that the broker refuses.
    pub dead_letter_queue: ShortName,
    /// Whether to declare the exchange, the queues and the binding; this needs the `configure` permission.
    #[serde(deserialize_with = "setting::text")]
    pub declare: bool,
    /// The type of the queues that are declared.
    pub queue_type: QueueType,
    /// Events in flight or waiting for an earlier event of their conversation. If it is too small, few conversations
    /// are published in parallel; if too large, more events are duplicated after a crash.
    #[serde(deserialize_with = "setting::number::<_, _, 1, 1_000_000>")]
    pub window: usize,
    /// How long a channel may wait without a confirm before the connection is considered dead.
    pub confirm_timeout: Timeout,
    /// What to do with an event that cannot be routed to a queue.
    pub unroutable: Unroutable,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            uri: List::default(),
            tls: Tls::default(),
            exchange: ShortName::constant("im.message.recalled"),
            queue: ShortName::constant("im.message.recalled"),
            dead_letter_queue: ShortName::constant("im.message.recalled.dead-letter"),
            declare: true,
            queue_type: QueueType::Quorum,
            window: 2000,
            confirm_timeout: Timeout::from_secs(30),
            unroutable: Unroutable::Retry,
        }
    }
}

/// Certificates, as PEM files. They are read at each connection attempt, so that they can be replaced while the relay
/// runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Certificate authorities to trust in addition to the system's.
    #[serde(deserialize_with = "setting::optional_path")]
    pub ca: Option<PathBuf>,
    /// The client's certificate.
    #[serde(deserialize_with = "setting::optional_path")]
    pub cert: Option<PathBuf>,
    /// The client's private key.
    #[serde(deserialize_with = "setting::optional_path")]
    pub key: Option<PathBuf>,
}

impl Tls {
    /// Checks that the files can be read and that the certificate belongs to the key. Blocks.
    ///
    /// # Errors
    /// Returns which setting is wrong, and why.
    pub fn check(&self) -> Result<(), SettingError> {
        let error =
            |key: &'static str, path: &Path, problem: &dyn std::fmt::Display| SettingError {
                key,
                problem: format!("{}: {problem}", path.display()),
            };
        let read = |key, path: &Path| {
            setting::read_bytes(path).map_err(|problem| error(key, path, &problem))
        };
        let certificates = |key, path: &Path| {
            let pem = read(key, path)?;
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            let found = found.map_err(|problem| error(key, path, &problem))?;
            if found.is_empty() {
                return Err(error(key, path, &"contains no certificate"));
            }
            Ok(found)
        };
        if let Some(ca) = &self.ca {
            certificates("rabbitmq.tls.ca", ca)?;
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            let chain = certificates("rabbitmq.tls.cert", cert)?;
            let private = PrivateKeyDer::from_pem_slice(&read("rabbitmq.tls.key", key)?)
                .map_err(|problem| error("rabbitmq.tls.key", key, &problem))?;
            CertifiedKey::from_der(chain, private, &ring::default_provider())
                .map_err(|problem| error("rabbitmq.tls.cert", cert, &problem))?;
        }
        Ok(())
    }
}

/// The type of a queue: the argument `x-queue-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueType {
    /// Replicated; the default.
    Quorum,
    /// On one node: for hosted brokers without quorum queues.
    Classic,
}

/// What to do with an event that cannot be routed to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unroutable {
    /// Publish it again until a queue is bound.
    #[serde(rename = "hold")]
    Retry,
    /// Publish it as a dead letter.
    DeadLetter,
}

/// An AMQP short string: at most 255 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShortName(String);

impl ShortName {
    fn constant(name: &str) -> Self {
        Self(name.to_owned())
    }

    pub(super) fn as_amqp(&self) -> lapin::types::ShortString {
        self.0.as_str().into()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for ShortName {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name.len() > 255 {
            return Err("is longer than the 255 bytes that AMQP allows");
        }
        if name.contains("://") || name.contains('"') {
            return Err("must be a name, without `://` and without quotes");
        }
        Ok(Self(name.to_owned()))
    }
}

impl std::fmt::Display for ShortName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ShortName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        setting::text(deserializer)
    }
}

impl Serialize for ShortName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// An invalid setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} {problem}")]
pub struct SettingError {
    /// The setting's key.
    pub key: &'static str,
    /// What is wrong with it; never its value.
    pub problem: String,
}

impl Config {
    /// Checks the settings as far as possible without a broker.
    ///
    /// # Errors
    /// Returns which setting is wrong, and why.
    pub fn check(&self) -> Result<(), SettingError> {
        let error = |key, problem: &str| {
            Err(SettingError {
                key,
                problem: problem.to_owned(),
            })
        };
        if self.uri.is_empty() {
            return error(
                "rabbitmq.uri",
                "is missing; set it to amqp://user:password@host:5672/vhost",
            );
        }
        if self.queue == self.dead_letter_queue {
            let problem = "must differ from rabbitmq.queue";
            return error("rabbitmq.dead_letter_queue", problem);
        }
        if self.tls.cert.is_some() != self.tls.key.is_some() {
            return error(
                "rabbitmq.tls.cert",
                "must be set together with rabbitmq.tls.key",
            );
        }
        let settings = [
            ("rabbitmq.tls.ca", &self.tls.ca),
            ("rabbitmq.tls.cert", &self.tls.cert),
        ];
        for (key, path) in settings {
            if path.is_some()
                && self
                    .uri
                    .iter()
                    .all(|uri| uri.parts().scheme == AMQPScheme::AMQP)
            {
                return error(
                    key,
                    "has no effect: no URI of rabbitmq.uri begins with amqps://",
                );
            }
        }
        Ok(())
    }

    /// Takes what `new` says about the connection.
    pub fn take_connection(&mut self, new: &Self) {
        self.uri.clone_from(&new.uri);
        self.tls.clone_from(&new.tls);
    }

    /// The files of certificates and keys.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let Tls { ca, cert, key } = &self.tls;
        [ca, cert, key].into_iter().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_longer_than_amqp_allows_are_refused() {
        assert!("x".repeat(255).parse::<ShortName>().is_ok());
        assert!("x".repeat(256).parse::<ShortName>().is_err());
    }

    #[test]
    fn events_and_dead_letters_have_different_queues() {
        let config = Config {
            uri: "amqp://h".parse().unwrap(),
            dead_letter_queue: Config::default().queue,
            ..Config::default()
        };
        let error = config.check().unwrap_err().to_string();
        assert_eq!(
            error,
            "rabbitmq.dead_letter_queue must differ from rabbitmq.queue"
        );
    }

    #[test]
    fn certificates_need_tls() {
        let check = |uri: &str| {
            let mut config = Config {
                uri: uri.parse().unwrap(),
                ..Config::default()
            };
            config.tls.ca = Some("ca.pem".into());
            config.check().map_err(|error| error.to_string())
        };
        assert_eq!(check("amqp://a,amqps://b"), Ok(()));
        let error = check("amqp://a").unwrap_err();
        assert!(
            error.starts_with("rabbitmq.tls.ca has no effect"),
            "{error}"
        );
    }
}
