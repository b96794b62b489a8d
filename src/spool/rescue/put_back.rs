//! Events in the log behind a damaged part of it.
//!
//! SQLite believes its log up to the first frame that is not right: the end of what was written before a
//! crash, usually. Where a frame in the middle is damaged, everything behind it would be lost without a
//! word. So whatever the log holds that is not in the file is put back: events above the lowest cursor
//! cannot have been deleted. Some of them may never have been answered; to publish those is no mistake.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;

use super::gaps::{Gaps, Known};
use super::pages::{Found, Pages};
use super::{Error, Findings};
use crate::event::Seq;
use crate::spool::note::Note;
use crate::spool::schema;

/// What the log holds and the file does not.
pub(in crate::spool) type Missing = BTreeMap<Seq, Found>;

/// Looks through the log, before SQLite brings it into the file. The file may be open.
pub(in crate::spool) fn look(connection: &Connection, log: &Path) -> Result<Missing, Error> {
    let confirmed = lowest_cursor(connection)?;
    let mut is_there = connection.prepare("SELECT 1 FROM events WHERE seq = ?1")?;
    let mut missing = Missing::new();
    Pages::of_log(log)?.each_row(|found| {
        let seq = found.stored.seq;
        if seq > confirmed && !missing.contains_key(&seq) && !is_there.exists([seq.0])? {
            missing.insert(seq, found);
        }
        Ok::<_, rusqlite::Error>(())
    })?;
    Ok(missing)
}

/// The lowest of the cursors; that is 0 where one of them is not what was written.
fn lowest_cursor(connection: &Connection) -> rusqlite::Result<Seq> {
    let mut cursors = connection.prepare("SELECT sink, seq, checksum FROM cursors")?;
    let cursors = cursors.query_map([], |row| {
        let (sink, seq): (String, Seq) = (row.get(0)?, Seq(row.get(1)?));
        let is_right = schema::cursor_checksum(&sink, seq) == row.get::<_, u32>(2)?;
        Ok(if is_right { seq } else { Seq::default() })
    })?;
    let lowest = cursors.min_by_key(|seq| seq.as_ref().map_or(0, |seq| seq.0));
    lowest.unwrap_or(Ok(Seq::default()))
}

/// Puts events back, and writes down the numbers that are missing all the same. `last` is the newest event
/// in the file.
pub(in crate::spool) fn put_back(
    connection: &Connection,
    missing: &Missing,
    last: Seq,
    note: Option<Note>,
) -> rusqlite::Result<Findings> {
    let mut findings = Findings {
        put_back: missing.len() as u64,
        ..Findings::default()
    };
    let note = note.unwrap_or_default();
    if missing.is_empty() && note.last <= last {
        return Ok(findings);
    }
    let newest = missing.keys().next_back().copied().unwrap_or_default();
    let known = Known {
        confirmed: note.confirmed,
        committed: note.last,
    };
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let mut gaps = Gaps::new(last, known);
    for (seq, found) in missing {
        found.insert(connection)?;
        findings.insert_all(gaps.meet(*seq, *seq), connection)?;
    }
    findings.insert_all(gaps.end(), connection)?;
    let next = newest.max(note.last).next();
    connection.execute("UPDATE identity SET next_seq = max(next_seq, ?1)", [next.0])?;
    connection.execute_batch("COMMIT")?;
    Ok(findings)
}
