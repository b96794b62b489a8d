//! The settings of the whole program: merges, checks and lists them.
//!
//! The environment overrides a TOML file, which overrides the built-in defaults. Each module defines its own settings;
//! this one only assembles them. An unknown key is an error that suggests the nearest known one. No error or listing
//! ever shows a secret.

mod files;
mod keys;
mod layer;
mod reload;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use figment::Figment;
use figment::error::Kind;
use figment::value::Dict;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use tracing::warn;

use crate::setting::{self, List, ServerCertificate, SettingError, Size, Timeout};
use crate::{admin, receiver, sink, spool, telemetry, upstream};
pub use files::FileDigests;
use layer::Layer;

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

/// The source of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The built-in default.
    Default,
    /// The configuration file.
    File(String),
    /// An environment variable, or the file that it names.
    Environment(String),
    /// A socket that systemd has passed.
    Systemd,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => f.write_str(path),
            Self::Environment(name) => f.write_str(name),
            Self::Systemd => f.write_str("systemd"),
        }
    }
}

/// A problem with a setting: which setting, where it was set, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    key: String,
    source: Source,
    text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A key and a source may be anything, and some texts quote a value: none may break the line or fill the log.
        let key = self.key.escape_debug().to_string();
        let source = self.source.to_string().escape_debug().to_string();
        let text = &self.text;
        match self.source {
            Source::Default => write!(f, "{key:.200}: {text:.600}"),
            _ => write!(f, "{key:.200} (from {source:.400}): {text:.600}"),
        }
    }
}

/// The configuration is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError(Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bad configuration")?;
        for problem in &self.0 {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

/// Why something failed: each problem with a setting, or else the error with its sources.
#[must_use]
pub fn reasons(error: &anyhow::Error) -> Vec<String> {
    match error.downcast_ref() {
        Some(ConfigError(problems)) => problems.iter().map(ToString::to_string).collect(),
        None => vec![telemetry::chain(error.as_ref())],
    }
}

/// The settings of a log that reports a [`ConfigError`]: the defaults, and the environment's `log.format` if it is
/// usable.
pub fn log_for_errors(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> telemetry::Config {
    let format = environment
        .into_iter()
        .find(|(name, _)| name == "RECALL_LOG__FORMAT")
        .and_then(|(_, value)| value.into_string().ok())
        .and_then(|format| serde_json::from_value(setting::clean(&format).into()).ok());
    telemetry::Config {
        format,
        ..telemetry::Config::default()
    }
}

/// Checked settings, and the source of each.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The files that settings name, other than the configuration file.
    pub digests: FileDigests,
    sources: BTreeMap<String, Source>,
}

impl Loaded {
    /// Merges the defaults, a file if there is one, and an environment, and checks the result.
    ///
    /// # Errors
    /// Names the settings that are unknown; or else those that are unusable; or else those that contradict each other.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = layers(file, environment, |_| true)?;

        // Report unknown keys first, and alone: a misspelt key is often why another setting is missing.
        let sources: BTreeMap<String, Source> = layers
            .iter()
            .flat_map(|layer| layer.sources.clone())
            .collect();
        let unknown_keys = sources
            .iter()
            .map(|(key, source)| (key, source, keys::unknown(key)));
        let unknown_sections = layers
            .iter()
            .flat_map(|layer| &layer.empty_sections)
            .map(|(key, source)| (key, source, keys::unknown_section(key)));
        let unknown: Vec<Problem> = unknown_keys
            .chain(unknown_sections)
            .filter_map(|(key, source, text)| {
                Some(Problem {
                    key: key.clone(),
                    source: source.clone(),
                    text: text?,
                })
            })
            .collect();
        if !unknown.is_empty() {
            return Err(ConfigError(unknown));
        }

        // Each layer overrides those before it. The first wrong value ends the extraction, so extract again without it.
        let mut problems = Vec::new();
        let config: Config = loop {
            let merged = layers.iter().cloned().fold(Figment::new(), Figment::merge);
            let error = match merged.extract() {
                Ok(config) => break config,
                Err(error) => error,
            };
            problems.push(explain(&error, &sources));
            let removed = layers
                .iter_mut()
                .filter_map(|layer| layer.remove(&error.path));
            if removed.count() == 0 {
                break Config::default();
            }
        };
        if !problems.is_empty() {
            return Err(ConfigError(problems));
        }
        let mut digests = FileDigests::default();
        for layer in &mut layers {
            digests.append(&mut layer.digests);
        }
        digests.read(config.http.tls.files());
        digests.read((config.upstream.iter()).flat_map(|upstream| upstream.tls.files()));
        #[cfg(feature = "kafka")]
        digests.read(config.kafka.iter().flat_map(sink::kafka::Config::files));
        #[cfg(feature = "rabbitmq")]
        digests.read(
            config
                .rabbitmq
                .iter()
                .flat_map(|rabbitmq| rabbitmq.tls.files()),
        );
        let loaded = Self {
            config,
            digests,
            sources,
        };
        loaded.check()?;
        Ok(loaded)
    }

    /// Loads the settings of the admin listener. No other setting is read, so a mistake in a setting that the
    /// running relay has not loaded does not make its health check fail.
    ///
    /// # Errors
    /// Names the setting that is unusable.
    pub fn load_admin(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<admin::Config, ConfigError> {
        let layers = layers(file, environment, |key| key.starts_with("admin."))?;
        let sources = layers
            .iter()
            .flat_map(|layer| layer.sources.clone())
            .collect();
        let merged = layers.into_iter().fold(Figment::new(), Figment::merge);
        let config: Result<Config, _> = merged.extract();
        config
            .map(|config| config.admin)
            .map_err(|error| ConfigError(vec![explain(&error, &sources)]))
    }

    /// Replaces the addresses of the listeners by those of passed sockets.
    pub fn use_sockets(&mut self, callbacks: Option<SocketAddr>, admin: Option<SocketAddr>) {
        let Config {
            http,
            admin: operators,
            ..
        } = &mut self.config;
        for (key, listen, passed) in [
            ("http.listen", &mut http.listen, callbacks),
            ("admin.listen", &mut operators.listen, admin),
        ] {
            if let Some(address) = passed {
                *listen = address;
                self.sources.insert(key.to_owned(), Source::Systemd);
            }
        }
    }

    /// The source of a setting's value.
    #[must_use]
    pub fn source(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or(Source::Default)
    }

    /// Every setting, its value and its source; secrets are hidden.
    #[must_use]
    pub fn listing(&self) -> Vec<(String, String, Source)> {
        self.listing_of(&self.config)
    }

    /// The listing for operators of a running relay, in which `config` is in force. It differs from these settings if
    /// some of them need a restart.
    #[must_use]
    pub fn in_force(&self, config: &Config) -> Vec<admin::SettingInForce> {
        let waiting = config.differences(&self.config);
        let rows = self.listing_of(config).into_iter();
        rows.map(|(key, value, source)| admin::SettingInForce {
            restart_needed: waiting.contains(&key),
            key,
            value,
            source: source.to_string(),
        })
        .collect()
    }

    fn listing_of(&self, config: &Config) -> Vec<(String, String, Source)> {
        keys::flatten(config)
            .into_iter()
            .map(|(key, value)| {
                let source = self.source(&key);
                let value = if keys::is_secret(&key) && !value.is_empty() {
                    "[hidden]".to_owned()
                } else {
                    value
                };
                (key, value, source)
            })
            .collect()
    }

    /// Reads the certificate of the listener for callbacks. None if it has no TLS. Blocks.
    ///
    /// # Errors
    /// Names the setting whose file is unusable.
    pub fn server_certificate(&self) -> Result<Option<ServerCertificate>, ConfigError> {
        let certificate = self.config.http.tls.read();
        certificate.map_err(|error| ConfigError(vec![self.problem(error.within("http.tls"))]))
    }

    /// Checks that the certificates of the brokers and of the upstream can be read, and that each belongs to its key.
    /// Blocks.
    ///
    /// # Errors
    /// Names the setting. A start does not require it: such a certificate must not keep callbacks out.
    pub fn check_certificates(&self) -> Result<(), ConfigError> {
        let errors = [
            self.config
                .upstream
                .as_ref()
                .and_then(|upstream| upstream.tls.read().err())
                .map(|error| error.within("upstream.tls")),
            #[cfg(feature = "kafka")]
            self.config
                .kafka
                .as_ref()
                .and_then(|kafka| kafka.check_client().err()),
            #[cfg(feature = "rabbitmq")]
            self.config
                .rabbitmq
                .as_ref()
                .and_then(|rabbitmq| rabbitmq.tls.read().err())
                .map(|error| error.within("rabbitmq.tls")),
        ];
        let errors = errors.into_iter().flatten();
        let problems: Vec<Problem> = errors.map(|error| self.problem(error)).collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError(problems))
        }
    }

    /// The problem with a setting, and where that was set.
    fn problem(&self, error: SettingError) -> Problem {
        let SettingError { key, problem } = error;
        Problem {
            source: self.source(&key),
            key,
            text: problem,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let config = &self.config;
        let mut problems = Vec::new();
        let mut wrong = |key: &str, text: String| {
            problems.push(Problem {
                key: key.to_owned(),
                source: self.source(key),
                text,
            });
        };
        if config.sdk_app_ids.is_empty() {
            let text = "is missing; set it to the SdkAppid of your application, or to several, \
                        for example RECALL_SDK_APP_IDS=1400000001";
            wrong("sdk_app_ids", text.to_owned());
        }
        if config.answer_after == receiver::AnswerAfter::Broker
            && config.sink_names() == [sink::stdout::NAME]
        {
            let text = "needs a broker: set kafka.bootstrap_servers or rabbitmq.uri, or answer_after to \"disk\"";
            wrong("answer_after", text.to_owned());
        }
        if let Err(text) = config.auth.check(&config.sdk_app_ids) {
            wrong("auth.tokens", text);
        }
        if config.admin.listen == config.http.listen && config.admin.listen.port() != 0 {
            wrong("admin.listen", "must differ from http.listen".to_owned());
        }
        for (key, size) in [
            ("http.max_body_bytes", config.http.max_body_bytes),
            ("spool.max_bytes", config.spool.max_bytes),
        ] {
            if size.0 == 0 {
                wrong(
                    key,
                    "must be more than zero; otherwise every callback is refused".to_owned(),
                );
            }
        }
        if config.http.max_buffered_bytes < config.http.max_body_bytes {
            let text = "must be at least http.max_body_bytes; otherwise the largest bodies are always refused";
            wrong("http.max_buffered_bytes", text.to_owned());
        }
        if config.http.proxy_protocol && config.auth.trusted_proxies.is_empty() {
            let text = "needs auth.trusted_proxies: the header is expected from these alone";
            wrong("http.proxy_protocol", text.to_owned());
        }
        if config.http.max_unauthenticated_bytes < Size(4 << 10) {
            let text = "must be at least 4KiB; otherwise the console's probe may be refused";
            wrong("http.max_unauthenticated_bytes", text.to_owned());
        }
        if let Err(error) = config.http.tls.check() {
            let SettingError { key, problem } = error.within("http.tls");
            wrong(&key, problem);
        }
        if let Some(Err(error)) = config.upstream.as_ref().map(upstream::Config::check) {
            wrong(&error.key, error.problem);
        }
        #[cfg(feature = "kafka")]
        if let Some(Err(error)) = config.kafka.as_ref().map(sink::kafka::Config::check) {
            wrong(&error.key, error.problem);
        }
        #[cfg(feature = "rabbitmq")]
        if let Some(Err(error)) = config.rabbitmq.as_ref().map(sink::rabbitmq::Config::check) {
            wrong(&error.key, error.problem);
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError(problems))
        }
    }
}

/// Reads the `wanted` keys of a file, if there is one, and of an environment.
fn layers(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    wanted: layer::Wanted,
) -> Result<Vec<Layer>, ConfigError> {
    let file = file.map(|path| Layer::from_file(path, wanted));
    let environment = Layer::from_environment(environment, wanted);
    let (mut layers, mut problems) = (Vec::new(), Vec::new());
    for layer in file.into_iter().chain([environment]) {
        match layer {
            Ok(layer) => layers.push(layer),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() {
        Ok(layers)
    } else {
        Err(ConfigError(problems))
    }
}

/// What figment could not read; without the value if it is a secret.
fn explain(error: &figment::Error, sources: &BTreeMap<String, Source>) -> Problem {
    let key = error.path.join(".");
    // figment names the key of an array's element. That key was not set and is not known to be secret: its array's is.
    let set = sources.iter().find(|(set, _)| is_within(&key, set));
    let is_secret = keys::is_secret(set.map_or(&key, |(set, _)| set));
    let text = match &error.kind {
        // Our own types' errors never quote a secret.
        Kind::Message(text) => text.clone(),
        _ if is_secret => "has a value of the wrong type".to_owned(),
        other => other.to_string(),
    };
    Problem {
        source: set.map_or(Source::Default, |(_, source)| source.clone()),
        key,
        text,
    }
}

/// Whether a key belongs to a setting or to a part of its value.
fn is_within(key: &str, setting: &str) -> bool {
    key.strip_prefix(setting)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// A section within a layer, by key.
fn child<'a>(dict: &'a mut Dict, name: &str) -> Option<&'a mut Dict> {
    match dict.get_mut(name)? {
        figment::value::Value::Dict(_, child) => Some(child),
        _ => None,
    }
}

#[cfg(all(test, feature = "kafka", feature = "rabbitmq"))]
mod tests;
