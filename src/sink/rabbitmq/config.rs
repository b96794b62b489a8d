//! Settings of the RabbitMQ sink.

use std::str::FromStr;

use lapin::uri::AMQPScheme;
use serde::{Deserialize, Serialize};

use super::broker_uri::BrokerUri;
use crate::setting::{self, ClientTls, List, Secret, SettingError, Timeout};

/// Settings of the RabbitMQ sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `amqp://user:password@host:5672/vhost`, or `amqps://` for TLS. Several URIs, separated by commas, are tried in
    /// turn.
    pub uri: List<BrokerUri>,
    /// Certificates. They are read at each connection attempt.
    pub tls: ClientTls,
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
            tls: ClientTls::default(),
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

    /// Whether there is no name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
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

impl Config {
    /// Checks the settings as far as possible without a broker.
    ///
    /// # Errors
    /// Returns which setting is wrong, and why.
    pub fn check(&self) -> Result<(), SettingError> {
        let error = |key: &str, problem: &str| Err(SettingError::new(key, problem));
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
        let tls = self.tls.check_pair();
        tls.map_err(|error| error.within("rabbitmq.tls"))?;
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

    /// The same connection with another user's credentials.
    #[must_use]
    pub fn with_credentials(mut self, user: &str, password: &Secret) -> Self {
        let uris = self.uri.0.into_iter();
        let uris = uris.map(|uri| uri.with_credentials(user, password));
        self.uri = List(uris.collect());
        self
    }

    /// Takes what `new` says about the connection.
    pub fn take_connection(&mut self, new: &Self) {
        self.uri.clone_from(&new.uri);
        self.tls.clone_from(&new.tls);
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
