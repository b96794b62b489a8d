//! The cursor of a sink.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::Seq;

/// A sink's cursor: the last event up to which all are confirmed.
#[derive(Debug, Clone)]
pub struct Cursor(Arc<AtomicU64>);

impl Cursor {
    pub(super) fn new(seq: Seq) -> Self {
        Self(Arc::new(AtomicU64::new(seq.0)))
    }

    /// Where it stands.
    #[must_use]
    pub fn position(&self) -> Seq {
        Seq(self.0.load(Ordering::Acquire))
    }

    /// Moves it forward; it never moves back. It is saved with the next commit, or soon.
    pub fn advance(&self, seq: Seq) {
        self.0.fetch_max(seq.0, Ordering::AcqRel);
    }
}
