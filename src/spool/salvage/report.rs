//! The report of a salvage, and its log lines.

use std::fmt;
use std::path::PathBuf;

use tracing::{error, warn};

use crate::event::Seq;

/// How many lost ranges are logged; the table `gaps` lists all of them.
const NAMED: usize = 20;

/// The damage that a start has found, and its consequences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SalvageReport {
    /// The damaged file, if one was quarantined.
    pub quarantined: Option<Quarantined>,
    /// First and last number of each range of unconfirmed events that were lost.
    pub lost: Vec<(Seq, Seq)>,
    /// Sinks whose cursor was damaged or is missing after a salvage. They start again at the oldest event kept.
    pub cursors: Vec<String>,
}

/// A damaged file that was replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// What was wrong with it.
    pub reason: String,
    /// Its new path.
    pub path: PathBuf,
    /// How many events could be read.
    pub kept: u64,
}

impl fmt::Display for Quarantined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (reason, kept, path) = (&self.reason, self.kept, self.path.display());
        write!(
            f,
            "{reason}; {kept} events were kept; quarantined as {path}"
        )
    }
}

impl SalvageReport {
    /// Logs the report.
    pub(in crate::spool) fn log(&self) {
        if let Some(Quarantined { reason, path, kept }) = &self.quarantined {
            let quarantined = path.display();
            error!(
                %quarantined, reason, kept,
                "the spool is damaged; the events that could be read are kept in a new file"
            );
        }
        for (first, last) in self.lost.iter().take(NAMED) {
            let events = last.0 + 1 - first.0;
            error!(%first, %last, events, "events are lost: the spool's file no longer holds these numbers");
        }
        if self.lost.len() > NAMED {
            let more = self.lost.len() - NAMED;
            error!(
                more,
                "more ranges of events are lost; the spool's table `gaps` lists them"
            );
        }
        for sink in &self.cursors {
            warn!(
                sink,
                "the sink's cursor is damaged; events that were published may be published again"
            );
        }
    }
}
