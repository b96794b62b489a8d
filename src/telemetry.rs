//! The log, written to standard error as text for people or as JSON for machines.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::Layer;
use tracing_subscriber::fmt::format::{Json, JsonFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

#[cfg(test)]
mod captured_log;
#[cfg(test)]
mod codes;
mod escape;
mod lines;
mod logged_texts;
mod recent_problems;
mod recurrence;
mod reminder;

use crate::setting::List;
#[cfg(test)]
pub use captured_log::{CapturedLog, log_to};
pub use escape::escape;
use escape::{EscapedFields, EscapedLines};
use lines::Lines;
pub use logged_texts::LoggedTexts;
pub use recent_problems::{RecentProblem, RecentProblems};
pub use recurrence::Recurrence;
pub use reminder::Reminder;

/// Settings of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The format of lines: `text` or `json`; if it is not set, text on a terminal, otherwise JSON.
    pub format: Option<Format>,
    /// What is logged: a level, levels of single parts of the program, or both: `warn,recall_relay=debug`. Without a
    /// level for all, that is `info`.
    #[serde(deserialize_with = "filter")]
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

/// Reads levels and targets' levels. `tracing` would also read a misspelt level as a target, which logs nothing.
fn filter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let directives = List::<String>::deserialize(deserializer)?;
    let is_target = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | ':');
    for directive in directives.iter() {
        let (target, level) = directive
            .split_once('=')
            .unwrap_or(("recall_relay", directive));
        let problem = if level.is_empty() || level.parse::<LevelFilter>().is_err() {
            "has no level; the levels are off, error, warn, info, debug and trace"
        } else if target.is_empty() || !target.chars().all(is_target) {
            "has no target before `=`; a target is a module's path, such as `recall_relay` (with `_`) or `lapin`"
        } else {
            continue;
        };
        return Err(D::Error::custom(format!("`{directive}` {problem}")));
    }
    Ok(directives.to_string())
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

/// Directives that `log.filter` can override. lapin logs every failed attempt and whole returned messages; we
/// log what matters ourselves, once.
const DEFAULTS: [&str; 3] = ["info", "lapin=off", "librdkafka=off"];

/// The log. Dropping it writes what was logged, unless that takes longer than two seconds.
#[derive(Debug)]
#[must_use]
pub struct Log {
    lines: Lines,
    filter: reload::Handle<EnvFilter, Registry>,
    problems: RecentProblems,
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines.flush_all();
    }
}

impl Log {
    /// Replaces the filter.
    pub fn set_filter(&self, filter: &str) {
        // If the log was started before in this process, that one stays, and this handle controls no subscriber.
        let _ = self.filter.reload(env_filter(filter));
    }

    /// The latest lines of WARN and ERROR that the filter lets through.
    #[must_use]
    pub const fn problems(&self) -> &RecentProblems {
        &self.problems
    }
}

/// `log.filter` has been checked; if a directive of it still cannot be parsed, the others hold.
fn env_filter(filter: &str) -> EnvFilter {
    let all: Vec<&str> = DEFAULTS.into_iter().chain([filter]).collect();
    EnvFilter::builder().parse_lossy(all.join(","))
}

/// Starts the log.
///
/// # Errors
/// Fails if no thread can be started.
pub fn start(config: &Config) -> anyhow::Result<Log> {
    let (layer_filter, filter) = reload::Layer::new(env_filter(&config.filter));
    let format = config.format.unwrap_or(if io::stderr().is_terminal() {
        Format::Text
    } else {
        Format::Json
    });
    let problems = RecentProblems::default();
    let registry = tracing_subscriber::registry()
        .with(layer_filter)
        .with(problems.clone());
    let lines = Lines::start().context("could not start the log's thread")?;
    let log = Log {
        lines: lines.clone(),
        filter,
        problems,
    };
    // If the log was started before in this process, that one stays.
    let _ = match format {
        Format::Text => {
            let layer = text_layer(move || lines.clone()).with_ansi(io::stderr().is_terminal());
            registry.with(layer).try_init()
        }
        Format::Json => registry.with(json_layer(move || lines.clone())).try_init(),
    };
    Ok(log)
}

fn text_layer<S, W: Write>(
    writer: impl Fn() -> W + 'static,
) -> Layer<S, EscapedFields, fmt::format::Format, impl Fn() -> W> {
    fmt::layer().fmt_fields(EscapedFields).with_writer(writer)
}

fn json_layer<S, W: Write>(
    writer: impl Fn() -> W + 'static,
) -> Layer<S, JsonFields, fmt::format::Format<Json>, impl Fn() -> EscapedLines<W>> {
    let layer = fmt::layer().json().flatten_event(true);
    layer.with_writer(move || EscapedLines(writer()))
}

/// How many log lines this process has dropped because nobody read standard error or writing to it failed.
#[must_use]
pub fn dropped_lines() -> u64 {
    lines::DROPPED.load(Ordering::Relaxed)
}

/// Writes lines to standard error, whether or not the log was started. Does not wait long if nobody reads it.
pub fn say(text: &str) {
    if let Ok(mut lines) = Lines::start() {
        let text: String = text.lines().map(|line| escape(line) + "\n").collect();
        let _ = lines.write_all(text.as_bytes());
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
    fn a_filter_that_would_log_nothing_is_refused() {
        let read = |filter: &str| {
            let json = serde_json::json!({ "filter": filter });
            serde_json::from_value::<Config>(json).map(|config| config.filter)
        };
        for (text, filter) in [
            ("off", "off"),
            ("INFO", "INFO"),
            (
                "warn, recall_relay::spool=debug,",
                "warn,recall_relay::spool=debug",
            ),
            ("librdkafka=debug", "librdkafka=debug"),
        ] {
            assert_eq!(read(text).unwrap(), filter);
        }
        for text in [
            "inof",
            "recall_relay",
            "recall-relay=debug",
            "lapin=",
            "=debug",
            "a=b=c",
            "lapin=debug;info",
            "info debug",
            "info\"",
            "[span]=debug",
            "/var/log/relay.log",
            "http://localhost",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_the_filter_does_not_name_is_logged_from_info() {
        for (filter, expected) in [
            ("lapin=warn", "librdkafka=off,lapin=warn,info"),
            ("off", "librdkafka=off,lapin=off,off"),
            ("warn", "librdkafka=off,lapin=off,warn"),
        ] {
            let directives = [&DEFAULTS[..], &[filter]].concat().join(",");
            let parsed = EnvFilter::builder().parse(&directives).unwrap();
            assert_eq!(parsed.to_string(), expected);
        }
    }

    #[test]
    fn chain_includes_the_sources_of_an_error() {
        let source = io::Error::other("disk is full");
        let error = anyhow::Error::new(source).context("could not write");
        assert_eq!(chain(error.as_ref()), "could not write: disk is full");
    }
}
