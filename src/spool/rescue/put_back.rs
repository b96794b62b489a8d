//! Events in the log behind a damaged part of it.
//!
//! SQLite believes its log up to the first frame that is not right: the end of what was written before a
//! crash, usually. Where a frame in the middle is damaged, everything behind it would be lost without a
//! word. So whatever the log holds that is not in the file is put back: events above the lowest cursor
//! that holds events cannot have been deleted. Some of them may never have been answered; to publish those is no mistake.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;

use super::gaps::{Gaps, Known};
use super::pages::{Found, Pages};
use super::{Error, Findings};
use crate::event::Seq;
use crate::spool::note::Note;
use crate::spool::saved_cursor::SavedCursor;

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

/// The lowest of the cursors that hold events; that is 0 where one of them is not what was written.
fn lowest_cursor(connection: &Connection) -> rusqlite::Result<Seq> {
    let mut cursors = Vec::new();
    SavedCursor::each(connection, |_, cursor| {
        cursors.push(cursor.unwrap_or(SavedCursor::UNKNOWN));
        Ok(())
    })?;
    Ok(SavedCursor::lowest(&cursors))
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;
    use crate::spool::files;
    use crate::spool::rescue::tests::database;

    /// A file with events 1 to 3, and a log that holds 1 to 6.
    fn file_and_log(folder: &TempDir) -> (Connection, PathBuf) {
        let path = folder.path().join("spool.db");
        let (copy, log) = (folder.path().join("copy.db"), folder.path().join("log"));
        let connection = database::create(&path);
        for seq in 1..=3 {
            database::event(seq).insert(&connection).unwrap();
        }
        fs::copy(&path, &copy).unwrap();
        connection
            .pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))
            .unwrap();
        for seq in 4..=6 {
            database::event(seq).insert(&connection).unwrap();
        }
        fs::copy(files::log(&path), &log).unwrap();
        (Connection::open(copy).unwrap(), log)
    }

    #[test]
    fn what_the_log_holds_beyond_the_lowest_cursor_and_the_file_does_not_is_found() {
        let folder = TempDir::new().unwrap();
        let (connection, log) = file_and_log(&folder);
        for (cursors, expected) in [
            (&[][..], &[4, 5, 6][..]),
            (&[("a", 2)], &[4, 5, 6]),
            (&[("a", 5)], &[6]),
            (&[("a", 5), ("b", 4)], &[5, 6]),
            (&[("a", 5), ("damaged", 5)], &[4, 5, 6]),
            (&[("a", 5), ("gone", 2)], &[6]),
            (&[("a", 6), ("b", 6)], &[]),
        ] {
            connection.execute("DELETE FROM cursors", []).unwrap();
            for (sink, seq) in cursors {
                let (seq, holds) = (Seq(*seq), *sink != "gone");
                SavedCursor { seq, holds }.save(sink, &connection).unwrap();
            }
            connection
                .execute("UPDATE cursors SET checksum = 0 WHERE sink = 'damaged'", [])
                .unwrap();
            let missing = look(&connection, &log).unwrap();
            let numbers: Vec<u64> = missing.keys().map(|seq| seq.0).collect();
            assert_eq!(numbers, expected, "{cursors:?}");
        }
    }

    #[test]
    fn what_is_put_back_is_counted_and_what_is_still_missing_is_named() {
        let folder = TempDir::new().unwrap();
        let connection = database::create(&folder.path().join("spool.db"));
        database::event(1).insert(&connection).unwrap();
        let missing = [4, 5].map(|seq| (Seq(seq), database::event(seq))).into();
        let note = Note {
            last: Seq(6),
            confirmed: Seq(2),
            ..Note::default()
        };
        let findings = put_back(&connection, &missing, Seq(1), Some(note)).unwrap();
        assert_eq!(findings.put_back, 2);
        assert_eq!(findings.lost, [(Seq(3), Seq(3)), (Seq(6), Seq(6))]);
        let kept = "SELECT count(*), (SELECT next_seq FROM identity) FROM events";
        let kept = connection.query_row(kept, [], |row| Ok((row.get(0)?, row.get(1)?)));
        assert_eq!(kept, Ok((3, 7)));
    }
}
