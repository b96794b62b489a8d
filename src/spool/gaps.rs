//! Gaps, which are numbers that no event has: the table `gaps`.

use rusqlite::{Connection, params};

use crate::event::Seq;

/// Records the numbers after `start` that are neither in a range of `known` events nor in a known gap. Up to
/// `confirmed` their events were confirmed; after it, up to `committed`, their events are lost.
///
/// This is sound because numbers are assigned without gaps, and only to committed events.
pub(super) fn record_missing(
    connection: &Connection,
    mut known: Vec<(Seq, Seq)>,
    start: Seq,
    confirmed: Seq,
    committed: Seq,
) -> rusqlite::Result<()> {
    let gaps = load(connection)?;
    known.extend(gaps.iter().map(|gap| (gap.first, gap.last)));
    known.sort_unstable();
    record_gaps(connection, &known, start, confirmed, false)?;
    record_gaps(connection, &known, start.max(confirmed), committed, true)
}

/// Records the numbers after `start`, up to `end`, that are in none of the `known` ranges, which are sorted.
pub(super) fn record_gaps(
    connection: &Connection,
    known: &[(Seq, Seq)],
    start: Seq,
    end: Seq,
    are_lost: bool,
) -> rusqlite::Result<()> {
    let mut insert = connection.prepare("INSERT INTO gaps VALUES (?1, ?2, ?3)")?;
    let mut next = start.next();
    // The range after `end` closes the last gap.
    for (first, last) in known.iter().chain([&(end.next(), end.next())]) {
        let last_missing = first.0.min(end.0 + 1) - 1;
        if last_missing >= next.0 {
            insert.execute(params![next.0, last_missing, are_lost])?;
        }
        next = next.max(last.next());
    }
    Ok(())
}

/// A range of numbers that no event has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) first: Seq,
    pub(super) last: Seq,
    /// Whether the gap's events were lost before every sink had confirmed them.
    pub(super) lost: bool,
}

/// Every gap, in order.
pub(super) fn load(connection: &Connection) -> rusqlite::Result<Vec<Gap>> {
    connection
        .prepare("SELECT first_seq, last_seq, lost FROM gaps ORDER BY 1")?
        .query_map([], |row| {
            Ok(Gap {
                first: Seq(row.get(0)?),
                last: Seq(row.get(1)?),
                lost: row.get(2)?,
            })
        })?
        .collect()
}

/// First and last number of each range of lost events after `seq`.
pub(super) fn lost_after(connection: &Connection, seq: Seq) -> rusqlite::Result<Vec<(Seq, Seq)>> {
    let gaps = load(connection)?;
    let after = gaps.iter().filter(|gap| gap.lost && gap.first > seq);
    Ok(after.map(|gap| (gap.first, gap.last)).collect())
}
