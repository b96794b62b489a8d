//! How the bench is run: its form, and what differs from the form; by environment.

use std::env;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Whether it works: one round of each. No figure of it means anything.
    Short,
    Normal,
    /// Longer rounds, and up to ten million events of backlog.
    Full,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub form: Form,
    /// Rounds of each measurement, in turn with those it is compared with.
    pub rounds: usize,
    /// How long a round loads.
    pub round: Duration,
    /// Events of a backlog.
    pub backlog: u64,
    /// Events of it that RabbitMQ, the slower broker, is given before its rate is told.
    pub confirmed: u64,
    /// A missed target fails the run.
    pub asserts: bool,
    /// Scenarios whose names have one of these in them; none: all.
    pub filters: Vec<String>,
    /// Settings of every relay.
    pub settings: Vec<(String, String)>,
    /// On the disk that is measured.
    pub folder: PathBuf,
}

impl Options {
    pub fn read(filters: Vec<String>) -> Self {
        let form = match variable::<String>("RECALL_BENCH").as_deref() {
            Some("short") => Form::Short,
            None | Some("normal") => Form::Normal,
            Some("full") => Form::Full,
            Some(other) => panic!("RECALL_BENCH is {other:?}: short, normal or full"),
        };
        let (rounds, seconds, backlog, confirmed) = match form {
            Form::Short => (1, 1, 100_000, 20_000),
            Form::Normal => (5, 2, 1_000_000, 100_000),
            Form::Full => (5, 5, 1_000_000, 1_000_000),
        };
        let settings = variable::<String>("RECALL_BENCH_SETTINGS").unwrap_or_default();
        let settings = settings.split_whitespace().map(|setting| {
            let (name, value) = setting.split_once('=').expect("RECALL_...=value");
            (name.to_owned(), value.to_owned())
        });
        Self {
            form,
            rounds: variable("RECALL_BENCH_ROUNDS").unwrap_or(rounds),
            round: Duration::from_secs(variable("RECALL_BENCH_SECONDS").unwrap_or(seconds)),
            backlog: variable("RECALL_BENCH_BACKLOG").unwrap_or(backlog),
            confirmed: confirmed.min(variable("RECALL_BENCH_BACKLOG").unwrap_or(backlog)),
            asserts: variable::<u8>("RECALL_BENCH_ASSERT").is_some_and(|asserts| asserts != 0),
            filters,
            settings: settings.collect(),
            folder: variable("RECALL_BENCH_FOLDER")
                .unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into()),
        }
    }

    /// At how many connections the broker's absence and a backlog are looked at.
    pub fn beside(&self) -> &'static [u32] {
        match self.form {
            Form::Short | Form::Normal => &[64, 256],
            Form::Full => &[1, 8, 64, 256],
        }
    }

    /// A round of half the length, where there are many; wrk knows whole seconds only.
    pub fn half_round(&self) -> Duration {
        Duration::from_secs((self.round.as_secs() / 2).max(1))
    }

    pub fn wants(&self, scenario: &str) -> bool {
        let fits = |filter: &String| scenario.contains(filter.as_str());
        self.filters.is_empty() || self.filters.iter().any(fits)
    }
}

/// Where the tables go.
pub fn output_folder() -> PathBuf {
    variable("RECALL_BENCH_OUTPUT").unwrap_or_else(|| {
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
        scratch.parent().expect("target").join("bench")
    })
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var_os(name)?.into_string().ok()?;
    let value = text.parse();
    Some(value.unwrap_or_else(|_| panic!("{name} is {text:?}")))
}
