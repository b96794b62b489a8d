//! What the spool holds, as a whole.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::{OptionalExtension as _, Transaction};

use super::{InspectError, Inspector};
use crate::event::{Seq, UnixMillis};
use crate::spool::gaps::{self, Gap};
use crate::spool::quota::Usage;
use crate::spool::salvage;
use crate::spool::saved_cursor::SavedCursor;
use crate::spool::schema;

/// What the spool holds, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolOverview {
    /// The oldest event kept; if there is none, the next one.
    pub first: Seq,
    /// The newest event; if there is none, the number before `first`.
    pub last: Seq,
    /// When the oldest event kept was appended.
    pub oldest_appended_at: Option<UnixMillis>,
    /// When the newest event was appended.
    pub newest_appended_at: Option<UnixMillis>,
    /// Bytes of all used pages.
    pub used_bytes: u64,
    /// The saved cursor of each sink; `None` if it is damaged.
    pub cursors: BTreeMap<String, Option<CursorOverview>>,
    /// How many dead letters the spool keeps for each sink that has any.
    pub dead_letters: BTreeMap<String, u64>,
    /// Quarantined files beside the spool that nobody has removed yet.
    pub quarantined: Vec<PathBuf>,
    gaps: Vec<Gap>,
}

/// A sink's saved cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CursorOverview {
    /// Every event up to here is confirmed.
    pub seq: Seq,
    /// Whether events after it are pinned.
    pub pins: bool,
}

impl SpoolOverview {
    /// How many events are kept.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.kept_within(Seq(0), self.last)
    }

    /// How many events after `after`, up to `up_to`, are kept.
    #[must_use]
    pub fn kept_within(&self, after: Seq, up_to: Seq) -> u64 {
        let (first, last) = (after.next().max(self.first), up_to.min(self.last));
        let count = |first: Seq, last: Seq| (last.0 + 1).saturating_sub(first.0);
        let missing = self.gaps.iter();
        let missing = missing.map(|gap| count(gap.first.max(first), gap.last.min(last)));
        count(first, last).saturating_sub(missing.sum())
    }

    /// First and last number of each range of events that damage has lost, in order.
    pub fn lost(&self) -> impl Iterator<Item = (Seq, Seq)> {
        let lost = self.gaps.iter().filter(|gap| gap.lost);
        lost.map(|gap| (gap.first, gap.last))
    }
}

impl Inspector {
    /// What the spool holds.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn overview(&self) -> Result<SpoolOverview, InspectError> {
        let overview = self.read(read)?;
        Ok(SpoolOverview {
            // The relay ignores an error here, too.
            quarantined: salvage::quarantined(&self.path).unwrap_or_default(),
            ..overview
        })
    }
}

fn read(connection: &Transaction<'_>) -> rusqlite::Result<SpoolOverview> {
    let (first, last) = schema::bounds(connection)?;
    let appended_at = |seq: Seq| {
        let at = "SELECT appended_at FROM events WHERE seq = ?1";
        let at = connection.query_row(at, [seq.0], |row| row.get(0));
        at.optional().map(|at| at.and_then(UnixMillis::new))
    };
    let cursors = SavedCursor::load_all(connection)?.into_iter();
    let cursors = cursors.map(|(sink, cursor)| {
        let overview = |SavedCursor { seq, pins }| CursorOverview { seq, pins };
        (sink, cursor.map(overview))
    });
    let dead_letters = connection
        .prepare("SELECT sink, count(*) FROM dead_letters GROUP BY sink")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(SpoolOverview {
        first,
        last,
        oldest_appended_at: appended_at(first)?,
        newest_appended_at: appended_at(last)?,
        used_bytes: Usage::read(connection)?.used_bytes,
        cursors: cursors.collect(),
        dead_letters,
        quarantined: Vec::new(),
        gaps: gaps::load(connection)?,
    })
}
