//! The tables, and the marks that tell our file from another.

use rusqlite::Connection;

/// `PRAGMA application_id`: `RRly` in ASCII.
pub(super) const APPLICATION_ID: i32 = 0x5252_6c79;

/// `PRAGMA user_version`: the version of the tables below.
pub(super) const VERSION: i32 = 1;

/// A pragma that has to come before the first table: free pages stay in the file, as room that is
/// already paid for when the disk runs full.
const CREATE: &str = "
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
    sink TEXT PRIMARY KEY,
    seq  INTEGER NOT NULL          -- every event up to here is confirmed
) STRICT, WITHOUT ROWID;
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

/// Makes the tables of a new file.
pub(super) fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(CREATE)?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", VERSION)?;
    connection.execute_batch("COMMIT")
}

/// The checksum of a row.
pub(super) fn checksum(seq: u64, id: &[u8; 16], kind: u8, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&seq.to_le_bytes());
    hasher.update(id);
    hasher.update(&[kind]);
    hasher.update(body);
    hasher.finalize()
}
