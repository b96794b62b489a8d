//! What SQLite can still read of a damaged file: its identity, cursors, gaps, dead letters and recent ids.

use std::path::Path;

use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, OpenFlags, params};

use super::gaps::Gap;
use crate::event::Seq;
use crate::spool::saved_cursor::SavedCursor;
use crate::spool::schema;

/// What the small tables tell of the numbers.
#[derive(Debug, Default)]
pub(super) struct Structure {
    /// The lowest of the cursors that hold events; 0 where one of them cannot be read.
    pub(super) confirmed: Seq,
    /// The highest of all numbers in them.
    pub(super) last: Seq,
    /// What was known to be missing.
    pub(super) gaps: Vec<Gap>,
    /// The sinks whose cursors cannot be read.
    pub(super) without_cursor: Vec<String>,
}

/// Copies them into a new database that has the events, each as far as it can be read. No event above
/// `committed` was ever kept.
pub(super) fn copy(
    damaged: &Path,
    new: &Connection,
    committed: Seq,
) -> rusqlite::Result<Structure> {
    let old = schema::connect(damaged, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let identity = old.query_row("SELECT spool_id, next_seq FROM identity", [], |row| {
        Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, u64>(1)?))
    });
    let mut last = Seq::default();
    if let Ok((spool_id, next_seq)) = identity {
        new.execute("UPDATE identity SET spool_id = ?1", [spool_id])?;
        last = Seq(next_seq.saturating_sub(1));
    }
    let (cursors, without_cursor) = copy_cursors(&old, new);
    let _ = copy_dead_letters(&old, new);
    last = last.max(copy_recent_ids(&old, new).unwrap_or_default());
    Ok(Structure {
        confirmed: SavedCursor::lowest(&cursors),
        last: cursors.iter().map(|cursor| cursor.seq).fold(last, Seq::max),
        gaps: gaps(&old, new, committed).unwrap_or_default(),
        without_cursor,
    })
}

/// Returns them; one that cannot be read holds everything, and its sink is named.
fn copy_cursors(old: &Connection, new: &Connection) -> (Vec<SavedCursor>, Vec<String>) {
    let (mut cursors, mut without) = (Vec::new(), Vec::new());
    let all = SavedCursor::each(old, |sink, cursor| {
        cursors.push(cursor.unwrap_or(SavedCursor::UNKNOWN));
        if let Some(cursor) = cursor {
            return cursor.save(&sink, new);
        }
        without.push(sink);
        Ok(())
    });
    if all.is_err() {
        cursors.push(SavedCursor::UNKNOWN);
    }
    (cursors, without)
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

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::spool::rescue::tests::database;

    #[test]
    fn the_small_tables_are_taken_over() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("spool.db");
        let old = database::create(&path);
        for (sink, seq, holds) in [("low", 4, true), ("high", 6, true), ("gone", 2, false)] {
            let seq = Seq(seq);
            SavedCursor { seq, holds }.save(sink, &old).unwrap();
        }
        old.execute_batch(
            "UPDATE identity SET next_seq = 8;
             INSERT INTO gaps VALUES (2, 3, 1);
             INSERT INTO recent_ids VALUES (1, zeroblob(16)), (9, zeroblob(16));
             INSERT INTO dead_letters VALUES ('low', 1, x'01', 2, 'reason', 'detail', x'02')",
        )
        .unwrap();
        let new = database::create(&folder.path().join("new.db"));
        let structure = copy(&path, &new, Seq(9)).unwrap();
        assert_eq!((structure.confirmed, structure.last), (Seq(4), Seq(9)));
        assert_eq!(structure.gaps, [gap(2, 3)]);

        for table in ["cursors", "recent_ids", "dead_letters"] {
            assert_eq!(rows(&new, table), rows(&old, table));
        }
        let spool_id = "(SELECT spool_id FROM identity)";
        assert_eq!(rows(&new, spool_id), rows(&old, spool_id));
    }

    /// What its sink has not confirmed was not deleted: where it is missing, it is lost.
    #[test]
    fn with_a_damaged_cursor_nothing_counts_as_confirmed() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("spool.db");
        let old = database::create(&path);
        for sink in ["damaged", "whole"] {
            let (seq, holds) = (Seq(6), true);
            SavedCursor { seq, holds }.save(sink, &old).unwrap();
        }
        old.execute_batch("UPDATE cursors SET seq = -1 WHERE sink = 'damaged'")
            .unwrap();
        let new = database::create(&folder.path().join("new.db"));
        let structure = copy(&path, &new, Seq(9)).unwrap();
        assert_eq!((structure.confirmed, structure.last), (Seq(0), Seq(6)));
        assert_eq!(structure.without_cursor, ["damaged"]);
        let copied = rows(&new, "(SELECT sink, seq FROM cursors)");
        assert_eq!(copied.len(), 1, "{copied:?}");
    }

    /// One that covers an event, or others, cannot be true; nor one of numbers that were never given out.
    #[test]
    fn gaps_that_cannot_be_true_are_left_out() {
        let folder = TempDir::new().unwrap();
        let new = database::create(&folder.path().join("new.db"));
        for seq in [10, 20, 30] {
            database::event(seq).insert(&new).unwrap();
        }
        for (written, expected) in [
            (
                &[(1, 9), (11, 19), (31, 40)][..],
                &[(1, 9), (11, 19), (31, 40)][..],
            ),
            (&[(1, 5), (5, 9), (6, 9)], &[(1, 5), (6, 9)]),
            (&[(1, 7), (3, 4), (8, 9)], &[(1, 7), (8, 9)]),
            (&[(9, 8), (11, 11)], &[(11, 11)]),
            (&[(1, 10), (11, 20), (21, 29)], &[(21, 29)]),
            (&[(31, 40), (41, 41)], &[(31, 40)]),
            (&[(31, 41)], &[]),
            (&[(0, 5), (-3, 2), (6, 7)], &[(6, 7)]),
        ] {
            let path = folder.path().join("old.db");
            let old = database::create(&path);
            for (first, last) in written {
                old.execute("INSERT INTO gaps VALUES (?1, ?2, 1)", [first, last])
                    .unwrap();
            }
            let expected: Vec<Gap> = expected
                .iter()
                .map(|(first, last)| gap(*first, *last))
                .collect();
            assert_eq!(gaps(&old, &new, Seq(40)).unwrap(), expected, "{written:?}");
            std::fs::remove_file(path).unwrap();
        }
    }

    fn gap(first: u64, last: u64) -> Gap {
        Gap {
            first: Seq(first),
            last: Seq(last),
            lost: true,
        }
    }

    fn rows(connection: &Connection, table: &str) -> Vec<String> {
        let mut statement = connection
            .prepare(&format!("SELECT * FROM {table}"))
            .unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| {
            let values: Result<Vec<_>, _> =
                (0..columns).map(|column| row.get_ref(column)).collect();
            Ok(format!("{:?}", values?))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }
}
