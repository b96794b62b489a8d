//! Captures what is logged, for tests.

use std::fmt;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Collects the lines that are logged on one thread: each code, then the fields except the sink and the message.
#[derive(Debug, Clone, Default)]
pub struct CapturedLog(Arc<Mutex<Vec<String>>>);

impl CapturedLog {
    /// Runs `act` on this thread; returns what it logs.
    pub fn lines(&self, act: impl FnOnce()) -> Vec<String> {
        tracing::subscriber::with_default(self.clone(), act);
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
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
