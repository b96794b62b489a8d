//! Salvages a damaged file: copies the events that can be read to a new file, counts lost events, and quarantines the
//! damaged file.
//!
//! Promises:
//! - a damaged spool prevents a start only if the new file cannot be written; none of its data is deleted or changed:
//!   it is renamed to `spool.db.damaged-<when>`, and its WAL with it;
//! - every event that is intact in the file, or in the WAL before the first damaged frame, is kept with its number;
//! - lost events are counted and named by their numbers;
//! - a cursor that cannot be read starts again at the oldest event kept.
//!
//! It restores only our own tables, and does not search for damage: [`super::store::Store::open`] calls it if the file
//! cannot be opened or if the last run marked the spool as damaged.

mod pages;
mod record;
mod replace;
mod report;
mod wal;

use std::fs;
use std::io;
use std::path::Path;

use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tracing::error;

pub(super) use replace::{finish, quarantined};
pub use report::{Quarantined, SalvageReport};

use super::saved_cursor::SavedCursor;
use super::watermark::Watermark;
use super::{files, gaps, schema};
use crate::event::Seq;
use pages::Pages;
use replace::{replace, salvaged};

/// The largest number that a spool assigns: a larger one is damage.
pub(super) const LARGEST_SEQ: u64 = 1 << 62;

/// Why nothing was salvaged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not a spool: it has no row of ours, and there is no high-water mark beside it.
    #[error("file is not a spool of recall-relay")]
    Foreign,
    /// A file operation failed.
    #[error("could not read or write the spool's files")]
    Files(#[from] io::Error),
    /// The new database could not be written.
    #[error("could not write the new database")]
    Database(#[from] rusqlite::Error),
}

/// Creates a new database from what can be read of a damaged one and its WAL, and replaces the damaged one.
pub(super) fn salvage(
    database: &Path,
    watermark: Option<Watermark>,
    reason: String,
) -> Result<SalvageReport, Error> {
    let new = salvaged(database);
    for leftover in [new.clone(), files::beside(&new, "-journal")] {
        files::remove(&leftover)?;
    }
    files::open_private(&new)?;
    let connection = schema::connect(&new, OpenFlags::default())?;
    // The whole file is synced before it replaces the damaged one. If that is interrupted, the next start creates it
    // again.
    connection.pragma_update(None, "synchronous", "off")?;
    schema::create(&connection)?;
    connection.execute_batch("BEGIN IMMEDIATE")?;

    // Copy every intact event from any page. `known` collects the ranges of their numbers.
    let (mut kept, mut known) = (0, Vec::<(Seq, Seq)>::new());
    let mut insert = connection.prepare(schema::INSERT)?;
    Pages::open(database)?.each_row(|row| {
        match schema::insert(&mut insert, row.seq, row.appended_at, &row.event) {
            // The file and the WAL may contain several copies of a page.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {}
            outcome => {
                outcome?;
                kept += 1;
                match known.last_mut() {
                    Some((_, last)) if last.next() == row.seq => *last = row.seq,
                    _ => known.push((row.seq, row.seq)),
                }
            }
        }
        Ok::<_, rusqlite::Error>(())
    })?;
    drop(insert);
    let first = known.iter().map(|(first, _)| *first).min();
    let last = known.iter().map(|(_, last)| *last).max();
    let last = last.unwrap_or(Seq(0));
    // A file without a row of ours and without a high-water mark may be another program's: it must not be moved.
    if kept == 0 && watermark.is_none() {
        drop(connection);
        files::remove(&new)?;
        return Err(Error::Foreign);
    }

    let committed = watermark.map_or(0, |mark| mark.last.0).max(last.0);
    let next = copy_small_tables(database, &connection, watermark, committed)?;
    // Only numbers up to the lowest cursor were purged. A cursor that cannot be read may be at 0.
    let cursors = SavedCursor::load_all(&connection)?;
    let unknown = SavedCursor {
        seq: Seq(0),
        pins: true,
    };
    let pinning = cursors.values().map(|cursor| cursor.unwrap_or(unknown));
    let pinning = pinning.filter(|cursor| cursor.pins);
    let lowest = pinning.map(|cursor| cursor.seq.0).min();
    let confirmed = watermark.map_or(lowest.unwrap_or(0), |mark| mark.confirmed.0);
    // Without a high-water mark, it is unknown what came before the first event that was found.
    let start = match (watermark, first) {
        (Some(_), Some(first)) => confirmed.min(first.0 - 1),
        (None, Some(first)) => first.0 - 1,
        (_, None) => confirmed,
    };
    let (start, confirmed) = (Seq(start), Seq(confirmed));
    gaps::record_missing(&connection, known, start, confirmed, Seq(committed))?;
    // The next number must be above every number that the events, the high-water mark, the cursors or the small tables
    // mention: none may be assigned twice.
    let highest = cursors.values().flatten().map(|cursor| cursor.seq.0).max();
    let committed = committed.max(confirmed.0);
    let next = next
        .max(committed.max(highest.unwrap_or(0)) + 1)
        .min(LARGEST_SEQ);
    // Only `cursors`, `identity` or `recent_ids` mentions these numbers. They may never have been used, so they do not
    // count as lost.
    gaps::record_gaps(&connection, &[], Seq(committed), Seq(next - 1), false)?;
    schema::save_next_seq(&connection, Seq(next))?;
    let ranges = gaps::lost_after(&connection, Seq(0))?;
    connection.execute_batch("COMMIT")?;
    connection.close().map_err(|(_, error)| error)?;
    let path = replace(database)?;
    Ok(SalvageReport {
        quarantined: Some(Quarantined { reason, path, kept }),
        lost: ranges,
        cursors: Vec::new(),
    })
}

/// Copies what SQLite can still read of the other tables. Skips gaps that contradict the events or each other; a
/// damaged cursor is detected when it is loaded. Returns a number that was never assigned, according to these tables.
fn copy_small_tables(
    database: &Path,
    new: &Connection,
    watermark: Option<Watermark>,
    committed: u64,
) -> rusqlite::Result<u64> {
    let mut next = 1;
    // SQLite deletes the WAL of an empty file.
    let is_empty = fs::metadata(database).is_ok_and(|file| file.len() == 0);
    if !is_empty && let Ok(old) = schema::connect(database, OpenFlags::SQLITE_OPEN_READ_ONLY) {
        for table in ["cursors", "gaps", "recent_ids", "dead_letters"] {
            if let Err(error) = copy_rows(&old, new, table) {
                error!(
                    code = "salvage_incomplete", table, %error,
                    "could not read all rows of a table of the damaged spool; look for them in the quarantined file"
                );
            }
        }
        let identity = old.query_row("SELECT spool_id, next_seq FROM identity", [], |row| {
            Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, u64>(1)?))
        });
        if let Ok((spool_id, next_seq)) = identity {
            new.execute("UPDATE identity SET spool_id = ?1", [spool_id])?;
            next = next_seq;
        }
    }
    // The high-water mark overrides the row: it has a checksum, and the row has none.
    if let Some(id) = watermark
        .map(|mark| mark.spool_id)
        .filter(|id| !id.is_nil())
    {
        new.execute("UPDATE identity SET spool_id = ?1", [id.as_bytes()])?;
    }
    new.execute(
        "DELETE FROM gaps WHERE last_seq > ?1
             OR EXISTS (SELECT 1 FROM events WHERE seq BETWEEN first_seq AND last_seq)
             OR EXISTS (SELECT 1 FROM gaps AS other
                        WHERE other.first_seq < gaps.first_seq AND other.last_seq >= gaps.first_seq)",
        [committed],
    )?;
    new.execute(
        "DELETE FROM recent_ids WHERE seq NOT BETWEEN 1 AND ?1",
        [LARGEST_SEQ],
    )?;
    let last_id = "SELECT coalesce(max(seq), 0) FROM recent_ids";
    let last_id: u64 = new.query_row(last_id, [], |row| row.get(0))?;
    Ok(next.max(last_id + 1))
}

fn copy_rows(old: &Connection, new: &Connection, table: &str) -> rusqlite::Result<()> {
    let mut select = old.prepare(&format!("SELECT * FROM {table}"))?;
    let columns = select.column_count();
    let places = vec!["?"; columns].join(", ");
    let mut insert = new.prepare(&format!("INSERT OR REPLACE INTO {table} VALUES ({places})"))?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        for column in 0..columns {
            let value = ToSqlOutput::Borrowed(row.get_ref(column)?);
            insert.raw_bind_parameter(column + 1, value)?;
        }
        // A row that violates the table's constraints is skipped.
        let _ = insert.raw_execute();
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
