//! A spool's database that a test fills by itself.

use std::path::Path;

use bytes::Bytes;
use rusqlite::Connection;
use uuid::Uuid;

use crate::event::{Event, Kind, Seq, Stored};
use crate::spool::rescue::pages::Found;
use crate::spool::schema;

/// Makes one that has no log.
pub(in crate::spool) fn create(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection
        .pragma_update(None, "synchronous", "off")
        .unwrap();
    schema::create(&connection).unwrap();
    connection
}

/// A row to insert.
pub(in crate::spool) fn event(seq: u64) -> Found {
    Found {
        stored: Stored {
            seq: Seq(seq),
            event: Event {
                kind: Kind::Recalled,
                id: Uuid::from_u128(seq.into()),
                bytes: Bytes::from(format!("event {seq}")),
            },
        },
        appended_at: 1_800_000_000_000,
    }
}
