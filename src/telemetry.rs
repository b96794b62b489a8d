//! The log: on standard error, as text for people or JSON for machines.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

mod lines;

use lines::Lines;

/// Settings of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How lines are written: `text` or `json`; not set: text on a terminal, else JSON.
    pub format: Option<Format>,
    /// What is logged, in the words of `tracing`: `info`, or `info,recall_relay=debug`.
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

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// The log's filter could not be read.
#[derive(Debug, thiserror::Error)]
#[error("log.filter `{filter}` cannot be read")]
pub struct FilterError {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// lapin logs every failed attempt and whole returned messages; what matters of them we say ourselves,
/// once.
const QUIET: [&str; 2] = ["lapin=off", "librdkafka=off"];

/// The log. When it is dropped, what was logged is written, unless that takes longer than two seconds.
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
/// Fails where the filter cannot be read ([`FilterError`]), or there is no thread to be had.
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
    let lines = Lines::start().context("could not start a thread for the log")?;
    let log = Log(lines.clone());
    let layer = tracing_subscriber::fmt::layer().with_writer(move || lines.clone());
    // A second start in the same process keeps the first one's log.
    let _ = match format {
        Format::Text => registry
            .with(layer.with_ansi(io::stderr().is_terminal()))
            .try_init(),
        Format::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    Ok(log)
}

/// How many log lines this process has dropped because standard error was not read, or could not be written.
#[must_use]
pub fn dropped_lines() -> u64 {
    lines::DROPPED.load(Ordering::Relaxed)
}

/// Says something on standard error, whatever becomes of the log; does not wait long for who reads it.
pub fn say(text: &str) {
    if let Ok(mut lines) = Lines::start() {
        let _ = lines.write_all(format!("{text}\n").as_bytes());
        lines.flush_all();
    }
}

/// An error and all its sources in one line: neither of the log's formats shows the sources.
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
    fn an_error_is_told_with_its_sources() {
        let error = FilterError {
            filter: "x=y".to_owned(),
            source: EnvFilter::builder().parse("x=y").unwrap_err(),
        };
        let text = chain(&error);
        assert!(
            text.starts_with("log.filter `x=y` cannot be read: "),
            "{text}"
        );
    }
}
