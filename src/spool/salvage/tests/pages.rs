//! SQLite writes rows, and the tests read them without SQLite.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tempfile::TempDir;

use super::database;
use crate::event::Kind;
use crate::spool::salvage::pages::Pages;
use crate::spool::salvage::record::cells;
use crate::spool::schema::StoredEvent;

/// Every row that is found in a file.
fn found(path: &Path) -> Vec<StoredEvent> {
    let pages = Pages::open(path).unwrap();
    let mut found = BTreeMap::new();
    let read = pages.each_row(|row| {
        found.insert(row.seq, row);
        Ok::<_, Infallible>(())
    });
    read.unwrap();
    found.into_values().collect()
}

/// Has SQLite write rows with ascending numbers, and asserts that the same rows are found.
fn assert_found(written: &[StoredEvent]) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("spool.db");
    let connection = database::create(&path);
    connection.execute_batch("BEGIN").unwrap();
    for row in written {
        database::insert(&connection, row);
    }
    connection.execute_batch("COMMIT").unwrap();
    let found = found(&path);
    for (found, written) in found.iter().zip(written) {
        assert_eq!(found, written);
    }
    assert_eq!(found.len(), written.len());
}

fn event_of_length(seq: u64, length: usize) -> StoredEvent {
    let mut row = database::event(seq);
    let text = (0..).map(|number| format!("{number} ")).take(length);
    row.event.body = text
        .collect::<String>()
        .split_at(length)
        .0
        .to_owned()
        .into();
    row
}

/// Row numbers of every length in bytes that SQLite uses for them.
#[test]
fn finds_rows_with_any_seq() {
    let edges = (0..=62).step_by(7).map(|bits| 1 << bits);
    let mut numbers: Vec<u64> = edges.flat_map(|edge| [edge - 1, edge, edge + 1]).collect();
    numbers.push(1 << 62);
    numbers.retain(|number| *number > 0);
    numbers.dedup();
    let rows: Vec<StoredEvent> = numbers.into_iter().map(database::event).collect();
    assert_found(&rows);
}

/// Integers of every length in bytes that SQLite uses for them.
#[test]
fn finds_rows_with_integers_of_any_width() {
    let edges = [7, 15, 23, 31, 47, 63].map(|bits| i64::MAX >> (63 - bits));
    let mut times = vec![0, 1, -1];
    times.extend(edges.into_iter().flat_map(|most| [most, !most]));
    times.extend(edges.into_iter().filter_map(|most| most.checked_add(1)));
    let rows: Vec<StoredEvent> = (1..)
        .zip(times)
        .map(|(seq, appended_at)| {
            let mut row = database::event(seq);
            row.appended_at = appended_at;
            row.event.kind = [Kind::Group, Kind::Rejected][usize::from(seq % 2 == 0)];
            row
        })
        .collect();
    assert_found(&rows);
}

/// A row's length determines whether it overflows into other pages, and how much of it then stays in the first. Without
/// the body it is 56 to 59 bytes long.
#[test]
fn finds_rows_of_any_length() {
    let edges = [4061, 4580, 8153, 8672, 12_245];
    let lengths = edges
        .into_iter()
        .flat_map(|edge| edge - 70..edge - 40)
        .chain((0..30_000).step_by(599));
    let rows: Vec<StoredEvent> = (1..)
        .zip(lengths)
        .map(|(seq, length)| event_of_length(seq, length))
        .collect();
    assert_found(&rows);
}

#[test]
fn a_cycle_of_overflow_pages_terminates() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("spool.db");
    let row = event_of_length(1, 9000);
    database::insert(&database::create(&path), &row);
    let file = fs::read(&path).unwrap();
    let second = file
        .chunks(4096)
        .flat_map(cells)
        .find_map(|cell| cell.overflow)
        .unwrap();
    let next_of = |page: u32| {
        let at = (page as usize - 1) * 4096;
        u32::from_be_bytes(file[at..at + 4].try_into().unwrap())
    };
    let third = next_of(second);
    assert_eq!(next_of(third), 0);

    let disk = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let link = |from: u32, to: u32| {
        let at = (u64::from(from) - 1) * 4096;
        disk.write_all_at(&to.to_be_bytes(), at).unwrap();
    };
    link(third, second);
    assert_eq!(found(&path), [row], "the row ends before the cycle");
    for to in [second, 0] {
        link(second, to);
        assert_eq!(found(&path), []);
    }
}
