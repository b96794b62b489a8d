//! What is wrong with the settings, and where they were set.

use std::ffi::OsString;
use std::fmt;

use crate::{setting, telemetry};

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
    pub(super) key: String,
    pub(super) source: Source,
    pub(super) text: String,
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
pub struct ConfigError(pub(super) Vec<Problem>);

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
