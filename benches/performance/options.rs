//! The benchmark's options, from environment variables: a form, and overrides.

use std::env;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// How much to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A smoke test: one round of each. Its results are meaningless.
    Short,
    Normal,
    /// Longer rounds, and up to ten million events of backlog.
    Full,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub form: Form,
    /// Rounds per measurement; they alternate with those it is compared with.
    pub rounds: usize,
    /// The duration of a round's load.
    pub round: Duration,
    /// The events of a backlog.
    pub backlog: u64,
    /// Events of a backlog over which to measure slow sinks: RabbitMQ, and Kafka with small transactions.
    pub slow_sink_events: u64,
    pub fail_on_missed_target: bool,
    /// Runs only scenarios whose names contain one of these. If empty, all but those on request.
    pub filters: Vec<String>,
    /// Additional settings of every relay.
    pub settings: Vec<(String, String)>,
    /// A folder on the measured disk.
    pub folder: PathBuf,
}

impl Options {
    pub fn read(filters: Vec<String>) -> Self {
        let form = match variable::<String>("RECALL_BENCH").as_deref() {
            Some("short") => Form::Short,
            None | Some("normal") => Form::Normal,
            Some("full") => Form::Full,
            Some(other) => panic!("RECALL_BENCH is {other:?}, not short, normal or full"),
        };
        let (rounds, seconds, backlog, slow_sink_events) = match form {
            Form::Short => (1, 1, 100_000, 20_000),
            Form::Normal => (5, 2, 1_000_000, 100_000),
            Form::Full => (5, 5, 1_000_000, 1_000_000),
        };
        let settings = variable::<String>("RECALL_BENCH_SETTINGS").unwrap_or_default();
        let settings = settings.split_whitespace().map(|setting| {
            let (name, value) = setting
                .split_once('=')
                .expect("RECALL_BENCH_SETTINGS has an item that is not RECALL_...=value");
            (name.to_owned(), value.to_owned())
        });
        Self {
            form,
            rounds: variable("RECALL_BENCH_ROUNDS").unwrap_or(rounds),
            round: Duration::from_secs(variable("RECALL_BENCH_SECONDS").unwrap_or(seconds)),
            backlog: variable("RECALL_BENCH_BACKLOG").unwrap_or(backlog),
            slow_sink_events: slow_sink_events
                .min(variable("RECALL_BENCH_BACKLOG").unwrap_or(backlog)),
            fail_on_missed_target: variable::<u8>("RECALL_BENCH_ASSERT")
                .is_some_and(|value| value != 0),
            filters,
            settings: settings.collect(),
            folder: variable("RECALL_BENCH_FOLDER")
                .unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into()),
        }
    }

    /// The connection counts for the scenarios with a broker that is down and with a backlog.
    pub fn connection_counts(&self) -> &'static [u32] {
        match self.form {
            Form::Short | Form::Normal => &[64, 256],
            Form::Full => &[1, 8, 64, 256],
        }
    }

    /// Half the duration, for scenarios with many rounds; wrk accepts only whole seconds.
    pub fn half_round(&self) -> Duration {
        Duration::from_secs((self.round.as_secs() / 2).max(1))
    }

    pub fn is_named(&self, scenario: &str) -> bool {
        let matches = |filter: &String| scenario.contains(filter.as_str());
        self.filters.iter().any(matches)
    }
}

/// The folder for the tables and plots.
pub fn output_folder() -> PathBuf {
    variable("RECALL_BENCH_OUTPUT").unwrap_or_else(|| {
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
        scratch
            .parent()
            .expect("CARGO_TARGET_TMPDIR has no parent")
            .join("bench")
    })
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var_os(name)?.into_string().ok()?;
    let value = text.parse();
    Some(value.unwrap_or_else(|_| panic!("{name} is invalid: {text:?}")))
}
