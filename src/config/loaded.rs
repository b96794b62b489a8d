//! The settings as they are read from their sources, which override each other in a fixed order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;

use figment::Figment;
use figment::error::Kind;

use super::layer::{self, Layer};
use super::problem::{ConfigError, Problem, Source};
use super::{Config, FileDigests, keys};
use crate::admin;
use crate::setting::{ServerCertificate, SettingError};
#[cfg(feature = "kafka")]
use crate::sink;

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
        loaded.fail_with(loaded.config.contradictions())?;
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
        self.fail_with(errors.into_iter().flatten())
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

    /// Fails if there are errors.
    fn fail_with(&self, errors: impl IntoIterator<Item = SettingError>) -> Result<(), ConfigError> {
        let errors = errors.into_iter();
        let problems: Vec<Problem> = errors.map(|error| self.problem(error)).collect();
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
    // For an array's element, figment names the element's key. Look up the array's key instead: only that one has a
    // source, and is known to be secret or not.
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
