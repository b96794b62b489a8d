//! A sink's cursor as it is on disk.

use rusqlite::{Connection, params};

use crate::event::Seq;

/// A row of `cursors`, without its sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SavedCursor {
    pub(super) seq: Seq,
    /// Whether no event behind it may be deleted. Only a sink that went when it had confirmed all holds
    /// nothing.
    pub(super) holds: bool,
}

impl SavedCursor {
    /// One that cannot be read: its sink may have confirmed nothing.
    pub(super) const UNKNOWN: Self = Self {
        seq: Seq(0),
        holds: true,
    };

    /// Reads all of them, each with its sink; none where a row is not what was written.
    pub(super) fn each(
        connection: &Connection,
        mut visit: impl FnMut(String, Option<Self>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let mut select = connection.prepare("SELECT sink, seq, holds, checksum FROM cursors")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let sink: String = row.get(0)?;
            let read = || {
                let (seq, holds) = (Seq(row.get(1)?), row.get(2)?);
                Ok::<_, rusqlite::Error>((Self { seq, holds }, row.get::<_, u32>(3)?))
            };
            let right = read().ok();
            let right = right.filter(|(cursor, checksum)| cursor.checksum(&sink) == *checksum);
            visit(sink, right.map(|(cursor, _)| cursor))?;
        }
        Ok(())
    }

    /// Up to where all have confirmed who hold events; 0 where nobody does.
    pub(super) fn lowest(cursors: &[Self]) -> Seq {
        let holding = cursors.iter().filter(|cursor| cursor.holds);
        holding.map(|cursor| cursor.seq).min().unwrap_or_default()
    }

    /// Writes it down.
    pub(super) fn save(self, sink: &str, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO cursors (sink, seq, holds, checksum) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (sink) DO UPDATE
                 SET seq = excluded.seq, holds = excluded.holds, checksum = excluded.checksum",
            )?
            .execute(params![sink, self.seq.0, self.holds, self.checksum(sink)])
            .map(|_| ())
    }

    fn checksum(self, sink: &str) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.seq.0.to_le_bytes());
        hasher.update(sink.as_bytes());
        if !self.holds {
            hasher.update(&[0]);
        }
        hasher.finalize()
    }
}
