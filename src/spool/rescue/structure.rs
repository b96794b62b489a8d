//! What SQLite can still read of a damaged file: its identity, cursors, gaps, dead letters and recent ids.

use std::path::Path;

use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, OpenFlags, params};

use super::gaps::Gap;
use crate::event::Seq;
use crate::spool::schema;

/// What the small tables tell of the numbers.
#[derive(Debug, Default)]
pub(super) struct Structure {
    /// The lowest of the cursors.
    pub(super) confirmed: Seq,
    /// The highest of all numbers in them.
    pub(super) last: Seq,
    /// What was known to be missing.
    pub(super) gaps: Vec<Gap>,
}

/// Copies them into a new database that has the events, each as far as it can be read. No event above
/// `committed` was ever kept.
pub(super) fn copy(
    damaged: &Path,
    new: &Connection,
    committed: Seq,
) -> rusqlite::Result<Structure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let old = schema::connect(damaged, flags)?;
    let identity = old.query_row("SELECT spool_id, next_seq FROM identity", [], |row| {
        Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, u64>(1)?))
    });
    let mut last = Seq::default();
    if let Ok((spool_id, next_seq)) = identity {
        new.execute("UPDATE identity SET spool_id = ?1", [spool_id])?;
        last = Seq(next_seq.saturating_sub(1));
    }
    let cursors = copy_cursors(&old, new).unwrap_or_default();
    let _ = copy_dead_letters(&old, new);
    last = last.max(copy_recent_ids(&old, new).unwrap_or_default());
    Ok(Structure {
        confirmed: cursors.iter().copied().min().unwrap_or_default(),
        last: cursors.into_iter().fold(last, Seq::max),
        gaps: gaps(&old, new, committed).unwrap_or_default(),
    })
}

fn copy_cursors(old: &Connection, new: &Connection) -> rusqlite::Result<Vec<Seq>> {
    let mut copied = Vec::new();
    let mut cursors = old.prepare("SELECT sink, seq, holds, checksum FROM cursors")?;
    let mut rows = cursors.query([])?;
    while let Ok(Some(row)) = rows.next() {
        let (sink, seq, holds) = (
            row.get::<_, String>(0)?,
            Seq(row.get(1)?),
            row.get::<_, bool>(2)?,
        );
        let checksum: u32 = row.get(3)?;
        if schema::cursor_checksum(&sink, seq) == checksum {
            new.execute(
                "INSERT INTO cursors (sink, seq, holds, checksum) VALUES (?1, ?2, ?3, ?4)",
                params![sink, seq.0, holds, checksum],
            )?;
            copied.push(seq);
        }
    }
    Ok(copied)
}

/// A row of these has no checksum: one that cannot be true is left out, and what it should have said is
/// found out again.
fn gaps(old: &Connection, new: &Connection, committed: Seq) -> rusqlite::Result<Vec<Gap>> {
    let mut gaps: Vec<Gap> = Vec::new();
    let mut select =
        old.prepare("SELECT first_seq, last_seq, lost FROM gaps WHERE first_seq > 0 ORDER BY 1")?;
    let mut event_between = new.prepare("SELECT 1 FROM events WHERE seq BETWEEN ?1 AND ?2")?;
    let mut rows = select.query([])?;
    while let Ok(Some(row)) = rows.next() {
        let gap = Gap {
            first: Seq(row.get(0)?),
            last: Seq(row.get(1)?),
            lost: row.get(2)?,
        };
        let in_order = gap.first <= gap.last
            && gap.last <= committed
            && gaps.last().is_none_or(|before| before.last < gap.first);
        if in_order && !event_between.exists([gap.first.0, gap.last.0])? {
            gaps.push(gap);
        }
    }
    Ok(gaps)
}

fn copy_dead_letters(old: &Connection, new: &Connection) -> rusqlite::Result<()> {
    let mut letters =
        old.prepare("SELECT sink, seq, id, at, reason, detail, body FROM dead_letters")?;
    let mut insert = new.prepare("INSERT INTO dead_letters VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
    let mut rows = letters.query([])?;
    while let Ok(Some(row)) = rows.next() {
        for column in 0..7 {
            let value = ToSqlOutput::Borrowed(row.get_ref(column)?);
            insert.raw_bind_parameter(column + 1, value)?;
        }
        insert.raw_execute()?;
    }
    Ok(())
}

/// Returns the highest number among them.
fn copy_recent_ids(old: &Connection, new: &Connection) -> rusqlite::Result<Seq> {
    let mut last = Seq::default();
    let mut ids = old.prepare("SELECT seq, id FROM recent_ids ORDER BY seq")?;
    let mut insert = new.prepare("INSERT INTO recent_ids VALUES (?1, ?2)")?;
    let mut rows = ids.query([])?;
    while let Ok(Some(row)) = rows.next() {
        let (seq, id): (u64, [u8; 16]) = (row.get(0)?, row.get(1)?);
        insert.execute(params![seq, id])?;
        last = Seq(seq);
    }
    Ok(last)
}
