//! The tables, and the encoding of an event as a row.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, Statement, params};
use uuid::Uuid;

use crate::event::{Event, Kind, Seq, UnixMillis};

/// `PRAGMA application_id`: `RRly` in ASCII.
pub(super) const APPLICATION_ID: i32 = 0x5252_6c79;

/// `PRAGMA user_version`: the version of the tables below.
pub(super) const VERSION: i32 = 1;

/// A version this large is damage: there will never be so many formats.
pub(super) const LARGEST_VERSION: i32 = 1000;

/// The size of a page in bytes. It is fixed because the salvage cannot read it from a file whose first page is damaged.
pub(super) const PAGE_SIZE: usize = 4096;

/// The number of columns of `events` after `seq`.
pub(super) const COLUMNS: usize = 9;

/// The two pragmas have to precede the first table. Without auto-vacuum, free pages stay in the file and can be used
/// when the disk is full.
const CREATE: &str = "
PRAGMA page_size = 4096;
PRAGMA auto_vacuum = NONE;
BEGIN IMMEDIATE;
CREATE TABLE events (
    seq          INTEGER PRIMARY KEY,
    id           BLOB NOT NULL,     -- UUID, 16 bytes
    kind         INTEGER NOT NULL,  -- 0 group, 1 c2c, 2 official account, 3 rejected callback
    conversation TEXT NOT NULL,     -- the event's partitionkey
    subject      TEXT,
    group_type   TEXT,
    time         INTEGER NOT NULL,  -- Unix milliseconds
    appended_at  INTEGER NOT NULL,  -- Unix milliseconds
    checksum     INTEGER NOT NULL,  -- CRC-32 of all other columns; pages have none
    body         TEXT NOT NULL      -- the event as it is published
) STRICT;
CREATE INDEX rejected_events ON events (seq, octet_length(body)) WHERE kind = 3;
CREATE TABLE cursors (
    sink     TEXT PRIMARY KEY,
    seq      INTEGER NOT NULL,      -- every event up to here is confirmed
    pins     INTEGER NOT NULL,      -- 0 if the sink was removed when it had confirmed everything
    checksum INTEGER NOT NULL       -- CRC-32 of all other columns
) STRICT, WITHOUT ROWID;
CREATE TABLE gaps (                 -- numbers that no event has
    first_seq INTEGER PRIMARY KEY CHECK (first_seq > 0),
    last_seq  INTEGER NOT NULL CHECK (last_seq >= first_seq),
    lost      INTEGER NOT NULL      -- 1 if unconfirmed events were lost; 0 if all were confirmed, or never used
) STRICT;
CREATE TABLE recent_ids (           -- ids of purged events that are still recognised
    seq INTEGER PRIMARY KEY,
    id  BLOB NOT NULL
) STRICT;
CREATE TABLE dead_letters (         -- events that neither the broker's topic nor its dead-letter topic accepted
    sink         TEXT NOT NULL,
    seq          INTEGER NOT NULL,
    at           INTEGER NOT NULL,  -- Unix milliseconds
    reason       TEXT NOT NULL,
    detail       TEXT NOT NULL,
    id           BLOB NOT NULL,
    kind         INTEGER NOT NULL,
    conversation TEXT NOT NULL,
    subject      TEXT,
    group_type   TEXT,
    time         INTEGER NOT NULL,
    body         TEXT NOT NULL,
    PRIMARY KEY (sink, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE identity (
    spool_id BLOB NOT NULL,         -- UUID, random
    next_seq INTEGER NOT NULL       -- the next number is not below this one, even if all tables are empty
) STRICT;
INSERT INTO identity VALUES (randomblob(16), 1);
";

/// How long a connection waits for a lock that another connection holds.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the file without parsing its name as a URI. Closing the connection does not checkpoint the WAL: SQLite would
/// do that even if the file is damaged.
pub(super) fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(path, flags.difference(OpenFlags::SQLITE_OPEN_URI))?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Creates the tables of a new file.
pub(super) fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(CREATE)?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", VERSION)?;
    connection.execute_batch("COMMIT")
}

/// Makes sure that no number below `next` is assigned again, even if all tables are empty.
pub(super) fn save_next_seq(connection: &Connection, next: Seq) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE identity SET next_seq = ?1")?
        .execute([next.0])
        .map(|_| ())
}

/// A row of `events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredEvent {
    pub(super) seq: Seq,
    /// Unix milliseconds.
    pub(super) appended_at: i64,
    pub(super) event: Event,
}

/// The statement that inserts an event; it is prepared once for many.
pub(super) const INSERT: &str =
    "INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";

/// Inserts an event with a statement prepared from [`INSERT`].
pub(super) fn insert(
    statement: &mut Statement<'_>,
    seq: Seq,
    appended_at: i64,
    event: &Event,
) -> rusqlite::Result<()> {
    statement
        .execute(params![
            seq.0,
            event.id.as_bytes(),
            kind_to_row(event.kind),
            event.conversation,
            event.subject,
            event.group_type,
            event.time.as_millis(),
            appended_at,
            checksum(seq, appended_at, event),
            text(&event.body),
        ])
        .map(|_| ())
}

/// A body as TEXT, without checking again that it is UTF-8.
pub(super) fn text(body: &Bytes) -> ToSqlOutput<'_> {
    ToSqlOutput::Borrowed(ValueRef::Text(body))
}

/// Decodes an event's columns; `None` if they do not match the checksum.
pub(super) fn decode(seq: Seq, columns: [ValueRef<'_>; COLUMNS]) -> Option<StoredEvent> {
    let [
        ValueRef::Blob(id),
        ValueRef::Integer(kind),
        ValueRef::Text(conversation),
        subject,
        group_type,
        ValueRef::Integer(time),
        ValueRef::Integer(appended_at),
        ValueRef::Integer(found),
        ValueRef::Text(body),
    ] = columns
    else {
        return None;
    };
    let event = Event {
        id: Uuid::from_slice(id).ok()?,
        kind: kind_of_row(kind)?,
        conversation: str::from_utf8(conversation).ok()?.into(),
        subject: subject.as_str_or_null().ok()?.map(Into::into),
        group_type: group_type.as_str_or_null().ok()?.map(Into::into),
        time: UnixMillis::new(u64::try_from(time).ok()?)?,
        body: Bytes::copy_from_slice(body),
    };
    let is_whole = i64::from(checksum(seq, appended_at, &event)) == found;
    is_whole.then_some(StoredEvent {
        seq,
        appended_at,
        event,
    })
}

/// The columns of `dead_letters` that [`dead_letter_event`] decodes.
pub(super) const DEAD_LETTER_EVENT: &str =
    "id, kind, conversation, subject, group_type, time, body";

/// Decodes the event of a row of `dead_letters`, from the column `first` on.
pub(super) fn dead_letter_event(row: &Row<'_>, first: usize) -> rusqlite::Result<Event> {
    let text = |index| row.get::<_, Option<String>>(first + index);
    let (kind, time): (i64, _) = (row.get(first + 1)?, row.get(first + 5)?);
    let invalid = |index, value| rusqlite::Error::IntegralValueOutOfRange(first + index, value);
    Ok(Event {
        id: Uuid::from_bytes(row.get(first)?),
        kind: kind_of_row(kind).ok_or_else(|| invalid(1, kind))?,
        conversation: row.get::<_, String>(first + 2)?.into(),
        subject: text(3)?.map(Into::into),
        group_type: text(4)?.map(Into::into),
        time: UnixMillis::new(time).ok_or_else(|| invalid(5, i64::MAX))?,
        body: row.get::<_, String>(first + 6)?.into(),
    })
}

/// The oldest event, or the next one if there is none; and the newest number that was assigned.
pub(super) fn bounds(connection: &Connection) -> rusqlite::Result<(Seq, Seq)> {
    // Two subqueries, because SQLite would read the whole table to find min and max in one.
    let bounds = "SELECT (SELECT min(seq) FROM events), (SELECT max(seq) FROM events),
                         (SELECT next_seq FROM identity)";
    connection.query_row(bounds, [], |row| {
        let (first, last): (Option<u64>, Option<u64>) = (row.get(0)?, row.get(1)?);
        let next = row.get::<_, u64>(2)?.max(last.map_or(1, |last| last + 1));
        let first = first.unwrap_or(next);
        if first == 0 || first > next || next > super::salvage::LARGEST_SEQ {
            return Err(rusqlite::Error::IntegralValueOutOfRange(2, i64::MAX));
        }
        Ok((Seq(first), Seq(next - 1)))
    })
}

/// When the oldest event after `position` was appended.
pub(super) fn appended_after(
    connection: &Connection,
    position: Seq,
) -> rusqlite::Result<Option<UnixMillis>> {
    let oldest = "SELECT appended_at FROM events WHERE seq > ?1 ORDER BY seq LIMIT 1";
    let millis = connection.query_row(oldest, [position.0], |row| row.get(0));
    Ok(millis.optional()?.and_then(UnixMillis::new))
}

/// Decodes a row of `events`; `None` if it does not match its checksum.
pub(super) fn decode_row(seq: Seq, row: &Row<'_>) -> rusqlite::Result<Option<StoredEvent>> {
    let mut columns = [ValueRef::Null; COLUMNS];
    for (index, column) in (1..).zip(&mut columns) {
        *column = row.get_ref(index)?;
    }
    Ok(decode(seq, columns))
}

fn checksum(seq: Seq, appended_at: i64, event: &Event) -> u32 {
    // Collect the columns first: updating the checksum with a few bytes takes as long as with many.
    let mut columns = Vec::with_capacity(256);
    columns.extend(seq.0.to_le_bytes());
    columns.extend(appended_at.to_le_bytes());
    columns.extend(event.time.as_millis().to_le_bytes());
    columns.extend(event.id.as_bytes());
    columns.push(kind_to_row(event.kind));
    // 0xff ends each text, and 0xfe stands for a missing one: UTF-8 contains neither byte.
    for text in [
        Some(&event.conversation),
        event.subject.as_ref(),
        event.group_type.as_ref(),
    ] {
        columns.extend(text.map_or(&b"\xfe"[..], |text| text.as_bytes()));
        columns.push(0xff);
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&columns);
    hasher.update(&event.body);
    hasher.finalize()
}

/// The encoding of an event's kind.
pub(super) const fn kind_to_row(kind: Kind) -> u8 {
    match kind {
        Kind::Group => 0,
        Kind::C2c => 1,
        Kind::OfficialAccount => 2,
        Kind::Rejected => 3,
    }
}

/// Decodes an event's kind.
pub(super) const fn kind_of_row(kind: i64) -> Option<Kind> {
    match kind {
        0 => Some(Kind::Group),
        1 => Some(Kind::C2c),
        2 => Some(Kind::OfficialAccount),
        3 => Some(Kind::Rejected),
        _ => None,
    }
}
