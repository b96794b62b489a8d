//! The tables, and the marks that tell our file from another.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::event::Kind;

/// `PRAGMA application_id`: `RRly` in ASCII.
pub(super) const APPLICATION_ID: i32 = 0x5252_6c79;

/// `PRAGMA user_version`: the version of the tables below.
pub(super) const VERSION: i32 = 1;

/// Bytes of a page. A file whose first page is damaged does not tell.
pub(super) const PAGE_SIZE: usize = 4096;

/// Two pragmas have to come before the first table. Free pages stay in the file, as room that is already
/// paid for when the disk runs full.
const CREATE: &str = "
PRAGMA page_size = 4096;
PRAGMA auto_vacuum = NONE;
BEGIN IMMEDIATE;
CREATE TABLE events (
    seq         INTEGER PRIMARY KEY,
    id          BLOB NOT NULL,     -- UUID, 16 bytes
    kind        INTEGER NOT NULL,  -- 0 a recall, 1 a callback that was rejected
    appended_at INTEGER NOT NULL,  -- Unix milliseconds
    checksum    INTEGER NOT NULL,  -- CRC-32 of seq, id, kind and body; pages have none
    body        BLOB NOT NULL      -- the event as it is published
) STRICT;
CREATE TABLE cursors (
    sink     TEXT PRIMARY KEY,
    seq      INTEGER NOT NULL,     -- every event up to here is confirmed
    holds    INTEGER NOT NULL,     -- 1 no event behind it is deleted, 0 its sink went when it had them all
    checksum INTEGER NOT NULL      -- CRC-32 of sink and seq
) STRICT, WITHOUT ROWID;
CREATE TABLE gaps (                -- numbers that no event has
    first_seq INTEGER PRIMARY KEY,
    last_seq  INTEGER NOT NULL,
    lost      INTEGER NOT NULL     -- 1 these events were kept once, 0 their append had failed
) STRICT;
CREATE TABLE recent_ids (          -- ids of events that are gone but still recognised
    seq INTEGER PRIMARY KEY,
    id  BLOB NOT NULL
) STRICT;
CREATE TABLE dead_letters (        -- events that no place at the broker took
    sink   TEXT NOT NULL,
    seq    INTEGER NOT NULL,
    id     BLOB NOT NULL,
    at     INTEGER NOT NULL,       -- Unix milliseconds
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    body   BLOB NOT NULL,
    PRIMARY KEY (sink, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE identity (
    spool_id BLOB NOT NULL,        -- UUID, random
    next_seq INTEGER NOT NULL      -- at least this comes next, even when all tables are empty
) STRICT;
INSERT INTO identity VALUES (randomblob(16), 1);
";

/// How long a connection waits for another one that holds the file.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the file in a way that leaves its log alone: SQLite would bring it into the file when the last
/// connection is closed, also into a damaged one.
pub(super) fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Makes the tables of a new file.
pub(super) fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(CREATE)?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", VERSION)?;
    connection.execute_batch("COMMIT")
}

/// The checksum of a row of `events`.
pub(super) fn checksum(seq: u64, id: &[u8; 16], kind: u8, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&seq.to_le_bytes());
    hasher.update(id);
    hasher.update(&[kind]);
    hasher.update(body);
    hasher.finalize()
}

/// How an event's kind is written.
pub(super) const fn kind_to_row(kind: Kind) -> u8 {
    match kind {
        Kind::Recalled => 0,
        Kind::Rejected => 1,
    }
}

/// The kind that was written.
pub(super) const fn kind_of_row(kind: u8) -> Option<Kind> {
    match kind {
        0 => Some(Kind::Recalled),
        1 => Some(Kind::Rejected),
        _ => None,
    }
}
