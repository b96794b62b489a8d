//! Runs a search of the spool, with a progress bar if it takes long.

use std::io::{self, IsTerminal as _};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::spool::{EventSearch, FoundEvent};

/// How long a search may take before the bar is shown.
const BAR_DELAY: Duration = Duration::from_millis(500);

/// A progress bar on stderr; there is none if stderr is not a terminal.
#[derive(Debug)]
pub(super) struct SearchBar {
    begun: Instant,
    bar: Option<ProgressBar>,
}

impl SearchBar {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            bar: None,
        }
    }

    /// Shows how far the search is.
    fn update(&mut self, searched: u64, total: u64) {
        if self.bar.is_none() && self.begun.elapsed() >= BAR_DELAY && io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} events");
            self.bar = Some(match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            });
        }
        if let Some(bar) = &self.bar {
            bar.set_position(searched);
        }
    }

    /// Removes the bar, before something is printed. It returns if the search goes on for long.
    pub(super) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.begun = Instant::now();
    }
}

/// Hands each event that the search finds to `handle`, until that breaks. No transaction is open meanwhile, so `handle`
/// may take as long as it wants.
pub(super) fn search_all(
    mut search: EventSearch<'_>,
    mut handle: impl FnMut(FoundEvent, &mut SearchBar) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<()> {
    let mut bar = SearchBar::new();
    while let Some(piece) = search.next_piece()? {
        for event in piece.found {
            if handle(event, &mut bar)?.is_break() {
                bar.clear();
                return Ok(());
            }
        }
        bar.update(piece.searched, piece.total);
    }
    bar.clear();
    Ok(())
}
