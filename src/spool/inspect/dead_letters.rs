//! Reads the dead letters that the spool keeps, in pages.

use rusqlite::{Row, params};
use uuid::Uuid;

use super::{InspectError, Inspector};
use crate::event::{Event, EventFilter, Seq, UnixMillis};
use crate::spool::schema;

/// A page has at most this many dead letters, and ends after this many bytes of bodies.
const PAGE_ROWS: u64 = 500;
const PAGE_BYTES: usize = 1 << 20;

/// A dead letter in the spool's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptDeadLetter {
    /// The sink that could not publish it.
    pub sink: String,
    /// The event's number.
    pub seq: Seq,
    /// When it was stored as dead letter.
    pub at: UnixMillis,
    /// The reason as one word.
    pub reason: String,
    /// The reason for people.
    pub detail: String,
    /// The event.
    pub event: Event,
}

/// Which dead letters to read; a field that is not set selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterQuery {
    /// Their sink.
    pub sink: Option<String>,
    /// The event's number.
    pub seq: Option<Seq>,
    /// The event's id.
    pub id: Option<Uuid>,
    /// The event's conversation, application and kind.
    pub filter: EventFilter,
}

/// Dead letters, ordered by sink and number.
#[derive(Debug)]
pub struct DeadLetterPages<'a> {
    inspector: &'a Inspector,
    query: DeadLetterQuery,
    /// The last one of the previous page.
    after: Option<(String, Seq)>,
}

impl Inspector {
    /// Starts to read dead letters.
    #[must_use]
    pub const fn dead_letters(&self, query: DeadLetterQuery) -> DeadLetterPages<'_> {
        DeadLetterPages {
            inspector: self,
            query,
            after: None,
        }
    }
}

impl Iterator for DeadLetterPages<'_> {
    type Item = Result<Vec<KeptDeadLetter>, InspectError>;

    /// The next page, which is not empty. No transaction is open between two pages.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let page = match self.read_page() {
                Ok(page) => page,
                Err(error) => return Some(Err(error)),
            };
            let last = page.last()?;
            self.after = Some((last.sink.clone(), last.seq));
            let selected = page
                .into_iter()
                .filter(|dead_letter| self.query.selects(dead_letter));
            let selected: Vec<_> = selected.collect();
            if !selected.is_empty() {
                return Some(Ok(selected));
            }
        }
    }
}

impl DeadLetterPages<'_> {
    fn read_page(&self) -> Result<Vec<KeptDeadLetter>, InspectError> {
        let (sink, seq) = self
            .after
            .as_ref()
            .map_or(("", Seq(0)), |(sink, seq)| (sink, *seq));
        self.inspector.read(|transaction| {
            let columns = schema::DEAD_LETTER_EVENT;
            let mut rows = transaction.prepare_cached(&format!(
                "SELECT sink, seq, at, reason, detail, {columns} FROM dead_letters
                 WHERE (sink, seq) > (?1, ?2) ORDER BY sink, seq LIMIT ?3"
            ))?;
            let mut rows = rows.query(params![sink, seq.0, PAGE_ROWS])?;
            let (mut page, mut bytes) = (Vec::new(), 0);
            while bytes < PAGE_BYTES
                && let Some(row) = rows.next()?
            {
                let dead_letter = decode(row)?;
                bytes += dead_letter.event.body.len();
                page.push(dead_letter);
            }
            Ok(page)
        })
    }
}

impl DeadLetterQuery {
    fn selects(&self, dead_letter: &KeptDeadLetter) -> bool {
        let event = &dead_letter.event;
        let subject = event.subject.as_deref();
        self.sink
            .as_ref()
            .is_none_or(|sink| *sink == dead_letter.sink)
            && self.seq.is_none_or(|seq| seq == dead_letter.seq)
            && self.id.is_none_or(|id| id == event.id)
            && self
                .filter
                .selects(event.kind, &event.conversation, subject)
    }
}

fn decode(row: &Row<'_>) -> rusqlite::Result<KeptDeadLetter> {
    let at = UnixMillis::new(row.get(2)?);
    Ok(KeptDeadLetter {
        sink: row.get(0)?,
        seq: Seq(row.get(1)?),
        at: at.ok_or(rusqlite::Error::IntegralValueOutOfRange(2, i64::MAX))?,
        reason: row.get(3)?,
        detail: row.get(4)?,
        event: schema::dead_letter_event(row, 5)?,
    })
}
