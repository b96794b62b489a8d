//! The log, written to standard error as text for people or as JSON for machines.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

#[cfg(test)]
mod codes;
mod lines;
mod reminder;

use lines::Lines;
pub use reminder::Reminder;

/// Settings of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The format of lines: `text` or `json`; if it is not set, text on a terminal, otherwise JSON.
    pub format: Option<Format>,
    /// What is logged, as a filter of `tracing`: `info`, or `info,recall_relay=debug`.
    pub filter: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            format: None,
            filter: "info".to_owned(),
        }
    }
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// The log's filter could not be parsed.
#[derive(Debug, thiserror::Error)]
#[error("log.filter `{filter}` is not a filter such as `info,recall_relay=debug`")]
pub struct FilterError {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Targets that are off by default. lapin logs every failed attempt and whole returned messages; we log what
/// matters ourselves, once.
const QUIET: [&str; 2] = ["lapin=off", "librdkafka=off"];

/// The log. Dropping it writes what was logged, unless that takes longer than two seconds.
#[derive(Debug)]
#[must_use]
pub struct Log(Lines);

impl Drop for Log {
    fn drop(&mut self) {
        self.0.flush_all();
    }
}

/// Starts the log.
///
/// # Errors
/// Fails if the filter cannot be parsed ([`FilterError`]) or no thread can be started.
pub fn start(config: &Config) -> anyhow::Result<Log> {
    let filter = QUIET
        .iter()
        .chain([&config.filter.as_str()])
        .copied()
        .collect::<Vec<_>>()
        .join(",");
    let filter = EnvFilter::builder()
        .parse(&filter)
        .map_err(|source| FilterError {
            filter: config.filter.clone(),
            source,
        })?;
    let format = config.format.unwrap_or(if io::stderr().is_terminal() {
        Format::Text
    } else {
        Format::Json
    });
    let registry = tracing_subscriber::registry().with(filter);
    let lines = Lines::start().context("could not start the log's thread")?;
    let log = Log(lines.clone());
    let layer = tracing_subscriber::fmt::layer().with_writer(move || lines.clone());
    // If the log was started before in this process, that one stays.
    let _ = match format {
        Format::Text => registry
            .with(layer.with_ansi(io::stderr().is_terminal()))
            .try_init(),
        Format::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    Ok(log)
}

/// How many log lines this process has dropped because nobody read standard error or writing to it failed.
#[must_use]
pub fn dropped_lines() -> u64 {
    lines::DROPPED.load(Ordering::Relaxed)
}

/// Writes to standard error, whether or not the log was started. Does not wait long if nobody reads it.
pub fn say(text: &str) {
    if let Ok(mut lines) = Lines::start() {
        let _ = lines.write_all(format!("{text}\n").as_bytes());
        lines.flush_all();
    }
}

/// An error and all its sources in one line: neither log format shows the sources.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            let _ = write!(text, ": {next}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_includes_the_sources_of_an_error() {
        let error = FilterError {
            filter: "x=y".to_owned(),
            source: EnvFilter::builder().parse("x=y").unwrap_err(),
        };
        let text = chain(&error);
        assert!(
            text.starts_with(
                "log.filter `x=y` is not a filter such as `info,recall_relay=debug`: "
            ),
            "{text}"
        );
    }
}
