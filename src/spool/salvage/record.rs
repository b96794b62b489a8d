//! Parses the cells of a page and the records in them, as in SQLite's document "Database File Format".
//!
//! It relies only on a row's checksum.

use rusqlite::types::ValueRef;

use crate::event::Seq;
use crate::spool::schema::{self, COLUMNS, PAGE_SIZE, StoredEvent};

/// The type of a page that contains rows of a table.
const TABLE_LEAF: u8 = 0x0d;
const LEAF_HEADER: usize = 8;

/// The maximum length of a row: an event is not much longer than its callback.
const MAX_ROW_BYTES: usize = 64 << 20;

/// A cell of a table's leaf page: a row's number, and the part of its record that is in the page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell<'a> {
    pub(super) seq: Seq,
    pub(super) length: usize,
    pub(super) local: &'a [u8],
    /// The page in which the record continues.
    pub(super) overflow: Option<u32>,
}

/// The cells of a page, if it is a table's leaf. The first page of a file never has our rows: it contains the file's
/// header and SQLite's schema table.
pub(super) fn cells(page: &[u8]) -> impl Iterator<Item = Cell<'_>> {
    let count = page
        .get(3..)
        .and_then(<[u8]>::first_chunk::<2>)
        .filter(|_| page.first() == Some(&TABLE_LEAF))
        .map_or(0, |count| usize::from(u16::from_be_bytes(*count)));
    let pointers = page.get(LEAF_HEADER..).unwrap_or_default();
    pointers.chunks_exact(2).take(count).filter_map(|pointer| {
        let at = usize::from(u16::from_be_bytes(pointer.try_into().ok()?));
        cell(page.get(at..)?)
    })
}

fn cell(bytes: &[u8]) -> Option<Cell<'_>> {
    let (length, bytes) = varint(bytes)?;
    let (seq, bytes) = varint(bytes)?;
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= MAX_ROW_BYTES)?;
    let in_page = local_length(length);
    let local = bytes.get(..in_page)?;
    let overflow = if in_page == length {
        None
    } else {
        let number = bytes.get(in_page..)?.first_chunk::<4>()?;
        Some(u32::from_be_bytes(*number))
    };
    Some(Cell {
        seq: Seq(seq),
        length,
        local,
        overflow,
    })
}

/// How many bytes of a table's record are in the page itself.
const fn local_length(length: usize) -> usize {
    let most = PAGE_SIZE - 35;
    if length <= most {
        return length;
    }
    let least = (PAGE_SIZE - 12) * 32 / 255 - 23;
    let in_page = least + (length - least) % (PAGE_SIZE - 4);
    if in_page <= most { in_page } else { least }
}

/// Big-endian groups of seven bits; the ninth byte has eight.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(9) {
        if index == 8 {
            return Some(((value << 8) + u64::from(*byte), bytes.get(9..)?));
        }
        value = (value << 7) + u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(index + 1..)?));
        }
    }
    None
}

/// Decodes a row of `events`, if the record is one and is intact.
pub(super) fn decode(seq: Seq, record: &[u8]) -> Option<StoredEvent> {
    let (header_length, _) = varint(record)?;
    let (header, body) = record.split_at_checked(usize::try_from(header_length).ok()?)?;
    let (_, types) = varint(header)?;
    // The number is in the cell; its column in the record is NULL.
    let (serial_type, mut types) = varint(types)?;
    let (ValueRef::Null, mut rest) = read_value(serial_type, body)? else {
        return None;
    };
    let mut columns = [ValueRef::Null; COLUMNS];
    for column in &mut columns {
        let (serial_type, more) = varint(types)?;
        (*column, rest) = read_value(serial_type, rest)?;
        types = more;
    }
    schema::decode(seq, columns).filter(|_| types.is_empty())
}

/// Reads a value by its serial type.
fn read_value(serial_type: u64, bytes: &[u8]) -> Option<(ValueRef<'_>, &[u8])> {
    let integer = |length: usize| {
        let (taken, rest) = bytes.split_at_checked(length)?;
        let sign = if taken.first()? & 0x80 == 0 { 0 } else { -1 };
        let value = taken
            .iter()
            .fold(sign, |value, byte| (value << 8) + i64::from(*byte));
        Some((ValueRef::Integer(value), rest))
    };
    match serial_type {
        0 => Some((ValueRef::Null, bytes)),
        1..=4 => integer(usize::try_from(serial_type).ok()?),
        5 => integer(6),
        6 => integer(8),
        8 => Some((ValueRef::Integer(0), bytes)),
        9 => Some((ValueRef::Integer(1), bytes)),
        12.. => {
            let (taken, rest) =
                bytes.split_at_checked(usize::try_from((serial_type - 12) / 2).ok()?)?;
            let value = if serial_type.is_multiple_of(2) {
                ValueRef::Blob(taken)
            } else {
                ValueRef::Text(taken)
            };
            Some((value, rest))
        }
        _ => None,
    }
}
