//! A spool's database that a test fills directly, without a `Spool`.

use std::path::Path;

use rusqlite::Connection;

use crate::event::{Seq, tests};
use crate::spool::schema::{self, StoredEvent};

/// Creates a database that has no WAL.
pub(in crate::spool) fn create(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection
        .pragma_update(None, "synchronous", "off")
        .unwrap();
    schema::create(&connection).unwrap();
    connection
}

/// A row to insert.
pub(in crate::spool) fn event(seq: u64) -> StoredEvent {
    StoredEvent {
        seq: Seq(seq),
        appended_at: 1_800_000_000_000,
        event: tests::event(seq.into(), format!("event {seq}")),
    }
}

pub(in crate::spool) fn insert(connection: &Connection, row: &StoredEvent) {
    let mut insert = connection.prepare(schema::INSERT).unwrap();
    schema::insert(&mut insert, row.seq, row.appended_at, &row.event).unwrap();
}
