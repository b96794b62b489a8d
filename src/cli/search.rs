//! Runs a search of the spool, with a progress line if it takes long.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::progress::{ProgressLine, ProgressRate};
use crate::spool::{EventSearch, FoundEvent};

/// How long a search may take before the line is shown.
const LINE_DELAY: Duration = Duration::from_millis(500);

/// A progress line that is shown only while nothing is printed for long.
#[derive(Debug)]
pub(super) struct SearchProgress {
    begun: Instant,
    line: Option<ProgressLine>,
}

impl SearchProgress {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            line: None,
        }
    }

    /// Shows how far the search is.
    fn update(&mut self, searched: u64, total: u64) {
        if self.line.is_none() && self.begun.elapsed() >= LINE_DELAY {
            self.line = Some(ProgressLine::new(Some(total), ProgressRate::Estimated));
        }
        if let Some(line) = &self.line {
            line.set_total(total);
            line.set_done(searched);
        }
    }

    /// Removes the line, before something is printed. It returns if the search goes on for long.
    pub(super) fn clear(&mut self) {
        self.line = None;
        self.begun = Instant::now();
    }
}

/// Hands each event that the search finds to `handle`, until that breaks. No transaction is open meanwhile, so `handle`
/// may take as long as it wants.
pub(super) fn search_all(
    mut search: EventSearch<'_>,
    mut handle: impl FnMut(FoundEvent, &mut SearchProgress) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<()> {
    let mut progress = SearchProgress::new();
    while let Some(piece) = search.next_piece()? {
        for event in piece.found {
            if handle(event, &mut progress)?.is_break() {
                return Ok(());
            }
        }
        progress.update(piece.searched, piece.total);
    }
    Ok(())
}
