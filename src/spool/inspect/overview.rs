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
    /// Bytes of the pages of the file that are not used.
    pub free_page_bytes: u64,
    /// The saved cursor of each sink; `None` if it is damaged.
    pub cursors: BTreeMap<String, Option<CursorOverview>>,
    /// How many dead letters the spool keeps for each sink that has any.
    pub dead_letters: BTreeMap<String, u64>,
    /// Bytes of the dead letters.
    pub dead_letter_bytes: u64,
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
        let missing = self.gaps.iter();
        let missing = missing.map(|gap| gap.first.max(first).count_to(gap.last.min(last)));
        first.count_to(last).saturating_sub(missing.sum())
    }

    /// How many bytes are freed if the events up to `forwarded` are purged, as a start does if it lacks space. An
    /// estimate, as if all events had the same size.
    #[must_use]
    pub fn purgeable_bytes(&self, forwarded: Seq) -> u64 {
        let events = self.used_bytes.saturating_sub(self.dead_letter_bytes);
        let purgeable = u128::from(self.kept_within(Seq(0), forwarded));
        let bytes = u128::from(events) * purgeable / u128::from(self.kept().max(1));
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// How many events damage has lost.
    #[must_use]
    pub fn lost_events(&self) -> u64 {
        self.lost().map(|(first, last)| first.count_to(last)).sum()
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
    let Usage {
        used_bytes,
        free_page_bytes,
    } = Usage::read(connection)?;
    let (mut dead_letters, mut dead_letter_bytes) = (BTreeMap::new(), 0);
    let mut by_sink = connection.prepare(
        "SELECT sink, count(*), sum(octet_length(body)) FROM dead_letters GROUP BY sink",
    )?;
    let mut rows = by_sink.query([])?;
    while let Some(row) = rows.next()? {
        dead_letters.insert(row.get(0)?, row.get(1)?);
        dead_letter_bytes += row.get::<_, u64>(2)?;
    }
    Ok(SpoolOverview {
        first,
        last,
        oldest_appended_at: appended_at(first)?,
        newest_appended_at: appended_at(last)?,
        used_bytes,
        free_page_bytes,
        cursors: cursors.collect(),
        dead_letters,
        dead_letter_bytes,
        quarantined: Vec::new(),
        gaps: gaps::load(connection)?,
    })
}
