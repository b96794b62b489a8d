//! A damaged file: what can be read is kept, what is lost is counted, and the file is put aside.
//!
//! Promises:
//! - a damaged spool stops a start only where the new file cannot be written, and none of its data is deleted or
//!   changed: it is renamed to `spool.db.damaged-<when>`, its log beside it;
//! - every event that lies whole in the file or in its log is kept, with its number;
//! - events that are lost are counted and named by their numbers;
//! - a cursor that cannot be read starts again at the oldest event kept.
//!
//! It is no repair of anything but our own tables, and it does not look for damage by itself: whoever finds
//! some notes it, ends the program, and the next start comes here.

mod cells;
mod gaps;
mod pages;
pub(super) mod put_back;
mod replace;
mod structure;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use tracing::{error, warn};

pub(super) use gaps::Gap;
use pages::Pages;
pub(super) use replace::{finish, put_aside};

use super::note::Note;
use super::{files, schema};
use crate::event::Seq;
use gaps::{Gaps, Known};
use replace::{replace, rescued};

/// How many lost ranges the log names; all of them are in the table `gaps`.
const NAMED: usize = 20;

/// What was found at the start that should not be so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// A damaged file that was put aside, if there was one.
    pub rescue: Option<Rescue>,
    /// Events that the log held behind a damaged part of it.
    pub put_back: u64,
    /// The numbers of events that were kept once, and are not in the file any more.
    pub lost: Vec<(Seq, Seq)>,
    /// Sinks that start again at the oldest event kept, because their cursor was damaged.
    pub cursors: Vec<String>,
}

/// A damaged file, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rescue {
    /// What was wrong with it.
    pub reason: String,
    /// Where it is now.
    pub aside: PathBuf,
    /// How many events could be read.
    pub kept: u64,
}

impl fmt::Display for Rescue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            reason,
            aside,
            kept,
        } = self;
        write!(
            f,
            "{reason}; {kept} events were kept; put aside as {}",
            aside.display()
        )
    }
}

impl Findings {
    /// Tells the log.
    pub(super) fn log(&self) {
        if let Some(Rescue {
            reason,
            aside,
            kept,
        }) = &self.rescue
        {
            let aside = aside.display();
            error!(%aside, reason, kept, "the spool is damaged; what could be read of it is kept");
        }
        if self.put_back > 0 {
            let events = self.put_back;
            warn!(
                events,
                "the end of the spool's log is damaged or incomplete; events in it are kept"
            );
        }
        for (first, last) in self.lost.iter().take(NAMED) {
            let events = last.0 + 1 - first.0;
            error!(%first, %last, events, "events are lost: the spool does not hold these numbers any more");
        }
        if self.lost.len() > NAMED {
            let more = self.lost.len() - NAMED;
            error!(
                more,
                "more events are lost; the spool's table gaps tells which"
            );
        }
        for sink in &self.cursors {
            warn!(
                sink,
                "the sink's cursor is damaged; it starts again at the oldest event kept"
            );
        }
    }

    /// Writes down gaps; those of lost events are findings.
    fn insert_all(&mut self, gaps: Vec<Gap>, connection: &Connection) -> rusqlite::Result<()> {
        for gap in gaps {
            gap.insert(connection)?;
            if gap.lost {
                self.lost.push((gap.first, gap.last));
            }
        }
        Ok(())
    }
}

/// Why nothing could be rescued.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The files.
    #[error("could not read or write its files")]
    Files(#[from] io::Error),
    /// The new database.
    #[error("could not write a new database")]
    Database(#[from] rusqlite::Error),
}

/// Whether a file holds an event of ours, whatever else it is. Nobody may have it open.
pub(super) fn holds_events(database: &Path) -> io::Result<bool> {
    let pages = Pages::of_both(database, &files::log(database))?;
    Ok(pages.each_row(|_| Err(())).is_err())
}

/// Makes a new database of what can be read of a damaged one and of its log, and puts it in its place.
pub(super) fn rescue(
    database: &Path,
    note: Option<Note>,
    reason: String,
) -> Result<Findings, Error> {
    let new = rescued(database);
    for leftover in [new.clone(), files::beside(&new, "-journal")] {
        files::remove(&leftover)?;
    }
    files::create_private(&new)?;
    let connection = Connection::open(&new)?;
    // It is synced as a whole before it takes its place; cut short, it is made again.
    connection.pragma_update(None, "synchronous", "off")?;
    schema::create(&connection)?;
    connection.execute_batch("BEGIN IMMEDIATE")?;
    Pages::of_both(database, &files::log(database))?.each_row(|found| found.insert(&connection))?;
    let bounds = "SELECT count(*), min(seq), max(seq) FROM events";
    let (kept, first, last) = connection.query_row(bounds, [], |row| {
        let (first, last): (Option<u64>, Option<u64>) = (row.get(1)?, row.get(2)?);
        Ok((
            row.get(0)?,
            first.map(|first| Seq(first.saturating_sub(1))),
            last.map(Seq),
        ))
    })?;
    let committed = note
        .map_or(Seq::default(), |note| note.last)
        .max(last.unwrap_or_default());
    // What SQLite can still read of the small tables; of each as far as that goes.
    let structure = structure::copy(database, &connection, committed).unwrap_or_default();
    // The note has a checksum; the row has none.
    let noted_id = note.map(|note| note.spool_id).filter(|id| !id.is_nil());
    if let Some(id) = noted_id {
        connection.execute("UPDATE identity SET spool_id = ?1", [id.as_bytes()])?;
    }
    let known = Known {
        confirmed: note.map_or(structure.confirmed, |note| note.confirmed),
        committed,
    };
    // Without a note nobody knows what was before the first event that is found.
    let from = match (note, first) {
        (Some(_), Some(first)) => first.min(known.confirmed),
        (None, Some(first)) => first,
        (_, None) => known.confirmed,
    };
    let mut findings = Findings {
        cursors: structure.without_cursor,
        ..Findings::default()
    };
    findings.insert_all(structure.gaps, &connection)?;
    insert_gaps(&connection, Gaps::new(from, known), &mut findings)?;
    findings.lost.sort_unstable();
    let next = known
        .committed
        .max(known.confirmed)
        .max(structure.last)
        .next();
    connection.execute("UPDATE identity SET next_seq = ?1", [next.0])?;
    connection.execute_batch("COMMIT")?;
    connection.close().map_err(|(_, error)| error)?;
    let aside = replace(database)?;
    findings.rescue = Some(Rescue {
        reason,
        aside,
        kept,
    });
    Ok(findings)
}

/// Writes down the numbers that neither an event nor a gap has.
fn insert_gaps(
    connection: &Connection,
    mut gaps: Gaps,
    findings: &mut Findings,
) -> rusqlite::Result<()> {
    let known =
        "SELECT seq, seq FROM events UNION ALL SELECT first_seq, last_seq FROM gaps ORDER BY 1";
    let mut numbers = connection.prepare(known)?;
    let mut rows = numbers.query([])?;
    while let Some(row) = rows.next()? {
        let new = gaps.meet(Seq(row.get(0)?), Seq(row.get(1)?));
        findings.insert_all(new, connection)?;
    }
    findings.insert_all(gaps.end(), connection)
}

#[cfg(test)]
pub(super) mod tests;
