//! The settings of the whole program: merges, checks and lists them.
//!
//! The environment overrides a TOML file, which overrides the built-in defaults. Each module defines its own settings;
//! this one only assembles them. An unknown key is an error that suggests the nearest known one. No error or listing
//! ever shows a secret.

mod check;
mod files;
mod keys;
mod layer;
mod loaded;
mod problem;
mod reload;

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use tracing::warn;

use crate::setting::{List, Timeout};
use crate::{admin, receiver, sink, spool, telemetry, upstream};
pub use files::FileDigests;
pub use loaded::Loaded;
pub use problem::{ConfigError, Problem, Source, log_for_errors, reasons};

/// All settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The applications whose recalls are accepted: the vendor's `SdkAppid`.
    #[serde(deserialize_with = "application_ids")]
    pub sdk_app_ids: List<u64>,
    /// When a recall is answered OK: `disk`, when its event is on the relay's disk; `broker`, when every configured
    /// broker has confirmed the event, too, or at `answer_deadline`.
    pub answer_after: receiver::AnswerAfter,
    /// With `answer_after = "broker"`: how long after its request a recall waits for the brokers at most. Then it is
    /// answered OK because its event is on disk.
    #[serde(deserialize_with = "answer_deadline")]
    pub answer_deadline: Timeout,
    /// On shutdown: how long open requests and then the sinks may take. Events that are not published by then stay
    /// in the spool. Closing the connections to brokers may take 3 s more.
    pub drain_timeout: Timeout,
    /// The listener for callbacks.
    pub http: receiver::Config,
    /// Who may send recalls.
    pub auth: receiver::AuthConfig,
    /// The listener for health and metrics.
    pub admin: admin::Config,
    /// The backend that other commands are handed on to, if there is one.
    pub upstream: Option<upstream::Config>,
    /// The spool.
    pub spool: spool::Config,
    /// Kafka, if it is a sink.
    #[cfg(feature = "kafka")]
    pub kafka: Option<sink::kafka::Config>,
    /// RabbitMQ, if it is a sink.
    #[cfg(feature = "rabbitmq")]
    pub rabbitmq: Option<sink::rabbitmq::Config>,
    /// The log.
    pub log: telemetry::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sdk_app_ids: List::default(),
            answer_after: receiver::AnswerAfter::default(),
            answer_deadline: Timeout::from_millis(500),
            drain_timeout: Timeout::from_secs(8),
            http: receiver::Config::default(),
            auth: receiver::AuthConfig::default(),
            admin: admin::Config::default(),
            upstream: None,
            spool: spool::Config::default(),
            #[cfg(feature = "kafka")]
            kafka: None,
            #[cfg(feature = "rabbitmq")]
            rabbitmq: None,
            log: telemetry::Config::default(),
        }
    }
}

impl Config {
    /// The configured sinks; standard output if there are none.
    #[must_use]
    pub fn sink_names(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        #[cfg(feature = "kafka")]
        if self.kafka.is_some() {
            names.push(sink::kafka::NAME);
        }
        #[cfg(feature = "rabbitmq")]
        if self.rabbitmq.is_some() {
            names.push(sink::rabbitmq::NAME);
        }
        if names.is_empty() {
            names.push(sink::stdout::NAME);
        }
        names
    }

    /// Warns if callbacks other than recalls are discarded.
    pub fn warn_if_no_upstream(&self) {
        if self.upstream.is_none() {
            warn!(
                code = "no_upstream",
                "commands other than recalls are answered OK and discarded, so a backend's checks are off; if a \
                 backend needs them, set upstream.url to its URL"
            );
        }
    }
}

fn application_ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<List<u64>, D::Error> {
    let ids = List::<u64>::deserialize(deserializer).ok();
    ids.filter(|ids| !ids.contains(&0))
        .ok_or_else(|| D::Error::custom("must be one or more SdkAppids, such as 1400000001"))
}

/// The vendor waits 2 s, which includes the network and the disk.
fn answer_deadline<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timeout, D::Error> {
    let deadline = Timeout::deserialize(deserializer)?;
    if *deadline > Duration::from_millis(1500) {
        return Err(D::Error::custom(
            "must be at most 1500ms: the vendor waits 2 s",
        ));
    }
    Ok(deadline)
}

#[cfg(all(test, feature = "kafka", feature = "rabbitmq"))]
mod tests;
