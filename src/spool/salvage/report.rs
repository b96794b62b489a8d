//! The report of a salvage, and its log lines.

use std::fmt;
use std::path::PathBuf;

use tracing::{error, warn};

use crate::event::Seq;

/// How many lost ranges are logged; the table `gaps` lists all of them.
const MAX_LOGGED_RANGES: usize = 20;

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
                code = "spool_damaged", reason, kept, %quarantined,
                "spool is damaged: the events that can be read were copied to a new file, and the damaged one is \
                 quarantined; check the disk"
            );
        }
        for (first, last) in self.lost.iter().take(MAX_LOGGED_RANGES) {
            let events = first.count_to(*last);
            error!(
                code = "events_lost", %first, %last, events,
                "events are lost: the damaged spool no longer has their numbers; check the disk"
            );
        }
        if self.lost.len() > MAX_LOGGED_RANGES {
            let more = self.lost.len() - MAX_LOGGED_RANGES;
            error!(
                code = "events_lost",
                ranges = more,
                "events of more ranges are lost; the spool's table `gaps` lists all"
            );
        }
        for sink in &self.cursors {
            warn!(
                code = "cursor_damaged",
                sink,
                "cursor of a sink is damaged: publishing again from the oldest event in the spool; expect many events \
                 twice"
            );
        }
    }
}
