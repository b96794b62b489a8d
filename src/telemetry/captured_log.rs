//! Captures what is logged, for tests.

use std::fmt;
use std::fmt::Write as _;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber};

/// Collects the lines that are logged on one thread: each code, then the fields except the sink and the message.
#[derive(Debug, Clone, Default)]
pub struct CapturedLog(Arc<Mutex<Vec<String>>>);

impl CapturedLog {
    /// Runs `act` on this thread; returns what it logs.
    pub fn lines(&self, act: impl FnOnce()) -> Vec<String> {
        log_to(self.clone(), act);
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs `act` on this thread; `subscriber` gets what it logs.
///
/// A second subscriber stays alive until the test process ends. With only one, tracing asks only the first thread that
/// logs a line whether anybody wants it: a test on another thread, without a subscriber, would switch the line off for
/// everybody.
pub fn log_to(subscriber: impl Subscriber + Send + Sync, act: impl FnOnce()) {
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(CapturedLog::default()));

    LazyLock::force(&SECOND);
    tracing::subscriber::with_default(subscriber, act);
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let line = &mut self.0;
        match field.name() {
            "message" | "sink" => {}
            "code" => write!(line, "{value:?}").unwrap(),
            name => write!(line, " {name}={value:?}").unwrap(),
        }
    }
}

impl Subscriber for CapturedLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0.replace('"', ""));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_line_is_captured_that_a_thread_without_a_subscriber_logs_first() {
        let log = || tracing::debug!(code = "test_line");
        let lines = CapturedLog::default().lines(|| {
            thread::spawn(log).join().unwrap();
            log();
        });
        assert_eq!(lines, ["test_line"]);
    }
}
