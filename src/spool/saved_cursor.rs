//! A sink's cursor as it is on disk.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use crate::event::Seq;

/// A row of `cursors`, without its sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SavedCursor {
    pub(super) seq: Seq,
    /// Whether events after this cursor are pinned. False only for a removed sink that had confirmed
    /// everything.
    pub(super) pins: bool,
}

impl SavedCursor {
    /// Reads the cursor of each sink; `None` if its row does not match its checksum.
    pub(super) fn load_all(
        connection: &Connection,
    ) -> rusqlite::Result<BTreeMap<String, Option<Self>>> {
        connection
            .prepare("SELECT sink, seq, pins, checksum FROM cursors")?
            .query_map([], |row| {
                let sink: String = row.get(0)?;
                let read = || {
                    let (seq, pins) = (Seq(row.get(1)?), row.get(2)?);
                    Ok::<_, rusqlite::Error>((Self { seq, pins }, row.get::<_, u32>(3)?))
                };
                let cursor = read()
                    .ok()
                    .filter(|(cursor, found)| cursor.checksum(&sink) == *found)
                    .map(|(cursor, _)| cursor);
                Ok((sink, cursor))
            })?
            .collect()
    }

    /// Writes the row. It has a checksum because a cursor that is too high would skip events.
    pub(super) fn save(self, sink: &str, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached("INSERT OR REPLACE INTO cursors VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![sink, self.seq.0, self.pins, self.checksum(sink)])
            .map(|_| ())
    }

    fn checksum(self, sink: &str) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.seq.0.to_le_bytes());
        hasher.update(&[self.pins.into()]);
        hasher.update(sink.as_bytes());
        hasher.finalize()
    }
}
