//! Searches the events in pieces.

use std::time::{Duration, Instant};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::{InspectError, Inspector};
use crate::event::{Event, EventFilter, Seq, UnixMillis};
use crate::spool::schema;

/// A piece ends after this many rows, this many bytes of bodies, or this long: long before a checkpoint would have to
/// wait.
const PIECE_ROWS: u64 = if cfg!(test) { 500 } else { 20_000 };
const PIECE_BYTES: usize = 1 << 20;
const PIECE_TIME: Duration = Duration::from_millis(100);

/// The clock is read once for so many rows.
const ROWS_PER_CLOCK: u64 = 128;

/// Which events to search for; a field that is not set selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// Their conversation, application and kind.
    pub filter: EventFilter,
    /// Their id.
    pub id: Option<Uuid>,
    /// Stored at this time or later.
    pub since: Option<UnixMillis>,
    /// Stored at this time or earlier.
    pub until: Option<UnixMillis>,
    /// The lowest number.
    pub first: Option<Seq>,
    /// The highest number.
    pub last: Option<Seq>,
    /// Which come first.
    pub order: SearchOrder,
}

/// The order of a search.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SearchOrder {
    /// From the highest number to the lowest.
    #[default]
    NewestFirst,
    /// From the lowest number to the highest.
    OldestFirst,
}

/// An event that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundEvent {
    /// Its number.
    pub seq: Seq,
    /// When it was appended, and the event; `None` if its row is damaged.
    pub stored: Option<(UnixMillis, Event)>,
}

/// What one piece of a search has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchPiece {
    /// The events, in the order of the search.
    pub found: Vec<FoundEvent>,
    /// How many numbers the search has gone through so far.
    pub searched: u64,
    /// How many it goes through in all.
    pub total: u64,
}

/// A search that is under way. Events that are appended after its start are not found.
#[derive(Debug)]
pub struct EventSearch<'a> {
    inspector: &'a Inspector,
    query: EventQuery,
    /// The numbers that are left; none if the first is higher than the last.
    first: u64,
    last: u64,
    total: u64,
}

impl Inspector {
    /// Starts a search.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn search(&self, query: EventQuery) -> Result<EventSearch<'_>, InspectError> {
        let (first, last) = self.read(|transaction| schema::bounds(transaction))?;
        let first = query.first.map_or(first, |lowest| lowest.max(first)).0;
        let last = query.last.map_or(last, |highest| highest.min(last)).0;
        Ok(EventSearch {
            inspector: self,
            query,
            first,
            last,
            total: (last + 1).saturating_sub(first),
        })
    }
}

impl EventSearch<'_> {
    /// Searches the next piece, which may contain no event; `None` at the end.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn next_piece(&mut self) -> Result<Option<SearchPiece>, InspectError> {
        if self.first > self.last {
            return Ok(None);
        }
        let inspector = self.inspector;
        let (found, passed) = inspector.read(|transaction| self.read_piece(transaction))?;
        // The next piece begins after the last row, however many rows are purged until then.
        match (passed, self.query.order) {
            (None, _) => self.first = self.last + 1,
            (Some(passed), SearchOrder::NewestFirst) => self.last = passed - 1,
            (Some(passed), SearchOrder::OldestFirst) => self.first = passed + 1,
        }
        Ok(Some(SearchPiece {
            found,
            searched: self.total - (self.last + 1).saturating_sub(self.first),
            total: self.total,
        }))
    }

    /// Also returns the number of the last row, unless the search has reached its end.
    fn read_piece(
        &self,
        connection: &Connection,
    ) -> rusqlite::Result<(Vec<FoundEvent>, Option<u64>)> {
        let begun = Instant::now();
        // Without the body: SQLite would read it for every row, also from overflow pages.
        let mut rows = connection.prepare_cached(match self.query.order {
            SearchOrder::NewestFirst => {
                "SELECT seq, id, kind, conversation, subject, appended_at FROM events
                 WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq DESC"
            }
            SearchOrder::OldestFirst => {
                "SELECT seq, id, kind, conversation, subject, appended_at FROM events
                 WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq"
            }
        })?;
        let mut rows = rows.query([self.first, self.last])?;
        let (mut found, mut count, mut bytes) = (Vec::new(), 0_u64, 0);
        while let Some(row) = rows.next()? {
            let seq: u64 = row.get(0)?;
            if self.query.selects(row)? {
                let event = read_event(connection, Seq(seq))?;
                if let Some((_, event)) = &event.stored {
                    bytes += event.body.len();
                }
                found.push(event);
            }
            count += 1;
            let is_late = count.is_multiple_of(ROWS_PER_CLOCK) && begun.elapsed() >= PIECE_TIME;
            if count >= PIECE_ROWS || bytes >= PIECE_BYTES || is_late {
                return Ok((found, Some(seq)));
            }
        }
        Ok((found, None))
    }
}

impl EventQuery {
    /// Whether a row is selected. A row with a column that is damaged is, because it could be any event.
    fn selects(&self, row: &Row<'_>) -> rusqlite::Result<bool> {
        if let (Some(wanted), ValueRef::Blob(id)) = (self.id, row.get_ref(1)?)
            && id != wanted.as_bytes()
        {
            return Ok(false);
        }
        let columns = (
            row.get_ref(2)?,
            row.get_ref(3)?.as_str(),
            row.get_ref(4)?.as_str_or_null(),
            row.get_ref(5)?,
        );
        let (
            ValueRef::Integer(kind),
            Ok(conversation),
            Ok(subject),
            ValueRef::Integer(appended_at),
        ) = columns
        else {
            return Ok(true);
        };
        let is_in_time = self
            .since
            .is_none_or(|time| appended_at >= time.as_millis())
            && self
                .until
                .is_none_or(|time| appended_at <= time.as_millis());
        let is_selected = |kind| self.filter.selects(kind, conversation, subject);
        Ok(is_in_time && schema::kind_of_row(kind).is_none_or(is_selected))
    }
}

/// Reads a row that exists, and checks its checksum.
fn read_event(connection: &Connection, seq: Seq) -> rusqlite::Result<FoundEvent> {
    let mut select = connection.prepare_cached("SELECT * FROM events WHERE seq = ?1")?;
    select.query_row([seq.0], |row| {
        let stored = schema::decode_row(seq, row)?.and_then(|stored| {
            let appended_at = u64::try_from(stored.appended_at).ok()?;
            Some((UnixMillis::new(appended_at)?, stored.event))
        });
        Ok(FoundEvent { seq, stored })
    })
}
