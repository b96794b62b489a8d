//! The cursor of a sink.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::Seq;

/// A sink's cursor: it has confirmed every event up to this position.
#[derive(Debug, Clone)]
pub struct Cursor(Arc<AtomicU64>);

impl Cursor {
    pub(super) fn new(seq: Seq) -> Self {
        Self(Arc::new(AtomicU64::new(seq.0)))
    }

    /// The number of the last event that is confirmed.
    #[must_use]
    pub fn position(&self) -> Seq {
        Seq(self.0.load(Ordering::Acquire))
    }

    /// Moves the cursor forward; it never moves back. The next commit or the next maintenance saves it.
    pub fn advance(&self, seq: Seq) {
        self.0.fetch_max(seq.0, Ordering::AcqRel);
    }
}
