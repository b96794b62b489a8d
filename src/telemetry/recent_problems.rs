//! Remembers the latest lines of WARN and ERROR, for the status page.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::escape;

/// How many different problems are remembered. A further one replaces the one that was logged least recently.
const CAPACITY: usize = 50;

/// How many fields of a line are remembered.
const MAX_FIELDS: usize = 16;

/// How many bytes of a message or a field are remembered, before they are escaped.
const MAX_TEXT_BYTES: usize = 600;

/// A line of the log, which may have been logged several times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentProblem {
    /// When it was logged first, as far as that is remembered.
    pub first: SystemTime,
    /// When it was logged last.
    pub last: SystemTime,
    /// How many times it was logged.
    pub times: u64,
    /// `WARN` or `ERROR`.
    pub level: Level,
    /// The code; empty for lines of libraries.
    pub code: String,
    /// The message. Escaped, as the fields are.
    pub message: String,
    /// Name and value of each other field, of the latest line.
    pub fields: Vec<(&'static str, String)>,
}

/// The latest problems; clones share them. Its memory is bounded.
#[derive(Debug, Clone, Default)]
pub struct RecentProblems(Arc<Mutex<VecDeque<RecentProblem>>>);

impl RecentProblems {
    /// The problems; the one that was logged last comes first.
    #[must_use]
    pub fn newest_first(&self) -> Vec<RecentProblem> {
        self.problems().iter().rev().cloned().collect()
    }

    fn problems(&self) -> MutexGuard<'_, VecDeque<RecentProblem>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, or counts it if it is known. Lines of different sinks are different problems.
    fn add(&self, level: Level, line: LineFields, now: SystemTime) {
        let mut problem = RecentProblem {
            first: now,
            last: now,
            times: 1,
            level,
            code: line.code,
            message: line.message,
            fields: line.others,
        };
        let mut problems = self.problems();
        if let Some(at) = problems.iter().position(|known| known.is_same(&problem))
            && let Some(known) = problems.remove(at)
        {
            problem.first = known.first;
            problem.times = known.times.saturating_add(1);
        }
        if problems.len() >= CAPACITY {
            problems.pop_front();
        }
        problems.push_back(problem);
    }
}

impl RecentProblem {
    fn is_same(&self, other: &Self) -> bool {
        self.code == other.code
            && self.message == other.message
            && self.level == other.level
            && self.sink() == other.sink()
    }

    fn sink(&self) -> Option<&str> {
        let (_, sink) = self.fields.iter().find(|(name, _)| *name == "sink")?;
        Some(sink)
    }
}

impl<S: Subscriber> Layer<S> for RecentProblems {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level <= Level::WARN {
            let mut line = LineFields::default();
            event.record(&mut line);
            self.add(level, line, SystemTime::now());
        }
    }
}

/// The fields of a line.
#[derive(Debug, Default)]
struct LineFields {
    code: String,
    message: String,
    others: Vec<(&'static str, String)>,
}

impl LineFields {
    fn set(&mut self, field: &Field, value: &str) {
        let value = escape(value);
        match field.name() {
            "code" => self.code = value,
            "message" => self.message = value,
            name if self.others.len() < MAX_FIELDS => self.others.push((name, value)),
            _ => {}
        }
    }
}

impl Visit for LineFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        let mut text = BoundedText::default();
        let _ = text.write_str(value);
        self.set(field, &text.0);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = BoundedText::default();
        // An error only ends the text early.
        let _ = write!(text, "{value:?}");
        self.set(field, &text.0);
    }
}

/// Text that ends with `…` if it would be longer than [`MAX_TEXT_BYTES`].
#[derive(Default)]
struct BoundedText(String);

impl Write for BoundedText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = MAX_TEXT_BYTES.saturating_sub(self.0.len());
        if text.len() <= left {
            self.0.push_str(text);
            return Ok(());
        }
        self.0.push_str(&text[..text.floor_char_boundary(left)]);
        self.0.push('…');
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use tracing::event;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::telemetry::log_to;

    /// What is remembered of the lines that `act` logs.
    fn remembered(act: impl FnOnce()) -> Vec<RecentProblem> {
        let problems = RecentProblems::default();
        let subscriber = tracing_subscriber::registry().with(problems.clone());
        log_to(subscriber, act);
        problems.newest_first()
    }

    #[test]
    fn warnings_and_errors_are_remembered_and_repeated_ones_are_counted() {
        let problems = remembered(|| {
            for waiting in [1, 2, 3] {
                event!(Level::WARN, code = "test_down", sink = "kafka", waiting, reason = %"no\u{1b} host", "sink is down");
            }
            event!(Level::INFO, code = "test_up", "sink is up");
            event!(
                Level::WARN,
                code = "test_down",
                sink = "rabbitmq",
                "sink is down"
            );
            event!(
                Level::ERROR,
                code = "test_down",
                sink = "kafka",
                "sink is down"
            );
            event!(
                Level::WARN,
                code = "test_down",
                sink = "kafka",
                waiting = 4,
                "sink is down"
            );
        });
        let seen: Vec<_> = problems
            .iter()
            .map(|problem| (problem.level, problem.sink().unwrap(), problem.times))
            .collect();
        assert_eq!(
            seen,
            [
                (Level::WARN, "kafka", 4),
                (Level::ERROR, "kafka", 1),
                (Level::WARN, "rabbitmq", 1)
            ]
        );
        let latest = &problems[0];
        assert_eq!(latest.code, "test_down");
        assert_eq!(latest.message, "sink is down");
        assert_eq!(
            latest.fields,
            [("sink", "kafka".to_owned()), ("waiting", "4".to_owned())]
        );
        assert!(latest.first <= latest.last);
    }

    #[test]
    fn fields_are_escaped() {
        let problems = remembered(|| {
            event!(
                Level::WARN,
                code = "test",
                reason = "a\u{1b}[2J\u{202e}b",
                "m"
            );
        });
        assert_eq!(
            problems[0].fields,
            [("reason", r"a\u001b[2J\u202eb".to_owned())]
        );
    }

    #[test]
    fn texts_and_their_number_are_bounded() {
        let problems = remembered(|| {
            for number in 0..2 * CAPACITY {
                event!(
                    Level::WARN,
                    code = "test",
                    reason = "é".repeat(5000),
                    "problem {number}"
                );
            }
        });
        assert_eq!(problems.len(), CAPACITY);
        assert_eq!(problems[0].message, "problem 99");
        assert_eq!(problems[CAPACITY - 1].message, "problem 50");
        let (_, reason) = &problems[0].fields[0];
        assert_eq!(*reason, "é".repeat(MAX_TEXT_BYTES / 2) + "…");
    }
}
