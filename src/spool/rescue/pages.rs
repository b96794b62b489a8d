//! Events read straight out of SQLite's pages, without trusting anything above them.
//!
//! A row of `events` is never changed once it is written, and has a checksum of its own. So any copy of it
//! that matches its checksum is right, wherever it lies: in a page of the file, in one of the log, or in
//! one that is not in use any more. The layout of pages, cells and records is that of SQLite's document
//! "Database File Format"; the log's is the "Write-Ahead Log" section of it.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, params};

use super::cells::{self, cells, decode};
use crate::event::Stored;
use crate::spool::schema::{self, PAGE_SIZE};

const LOG_HEADER: u64 = 32;
const FRAME_HEADER: u64 = 24;
const FRAME: u64 = FRAME_HEADER + PAGE_SIZE as u64;

/// How often a read that fails is tried again, and after what pause: a disk may be itself again soon.
const PATIENCE: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// A row of `events` that matches its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::spool) struct Found {
    pub(in crate::spool) stored: Stored,
    pub(in crate::spool) appended_at: i64,
}

impl Found {
    /// Puts it into a table of events, unless its number is there.
    pub(in crate::spool) fn insert(&self, connection: &Connection) -> rusqlite::Result<()> {
        let (seq, event) = (self.stored.seq.0, &self.stored.event);
        let (id, kind) = (event.id.as_bytes(), schema::kind_to_row(event.kind));
        let checksum = schema::checksum(seq, id, kind, &event.bytes);
        connection
            .prepare_cached(
                "INSERT OR IGNORE INTO events (seq, id, kind, appended_at, checksum, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                seq,
                id,
                kind,
                self.appended_at,
                checksum,
                &event.bytes[..]
            ])
            .map(|_| ())
    }
}

/// The pages of a file, or of a log, or of both.
#[derive(Debug)]
pub(in crate::spool) struct Pages {
    file: Option<File>,
    log: Option<File>,
    in_file: u64,
    frames: u64,
    /// How often a read that fails is still tried again, over all pages.
    patience: Cell<u32>,
    /// For each page of the file, its copies in the log, oldest first.
    copies: HashMap<u32, Vec<u64>>,
}

/// Where a page lies.
#[derive(Debug, Clone, Copy)]
enum Place {
    File(u64),
    Frame(u64),
}

impl Pages {
    /// The pages of a file that nobody has open, and of its log where there is one.
    pub(in crate::spool) fn of_both(file: &Path, log: &Path) -> io::Result<Self> {
        Self::new(Some(File::open(file)?), open_log(log)?)
    }

    /// The pages of a log alone; the file may be open. (To open and close the file itself would drop
    /// SQLite's locks on it.)
    pub(in crate::spool) fn of_log(log: &Path) -> io::Result<Self> {
        Self::new(None, open_log(log)?)
    }

    fn new(file: Option<File>, log: Option<File>) -> io::Result<Self> {
        let length = |file: &Option<File>| match file {
            Some(file) => file.metadata().map(|metadata| metadata.len()),
            None => Ok(0),
        };
        let in_file = length(&file)?.div_ceil(PAGE_SIZE as u64);
        let frames = length(&log)?.saturating_sub(LOG_HEADER).div_ceil(FRAME);
        let mut pages = Self {
            file,
            log,
            in_file,
            frames,
            patience: Cell::new(PATIENCE),
            copies: HashMap::new(),
        };
        for frame in 0..frames {
            let mut number = [0; 4];
            pages.read(Place::Frame(frame), &mut number, true);
            let number = u32::from_be_bytes(number);
            pages.copies.entry(number).or_default().push(frame);
        }
        Ok(pages)
    }

    /// Hands over every row that is found, in no order, and some more than once.
    pub(in crate::spool) fn each_row<E>(
        &self,
        mut take: impl FnMut(Found) -> Result<(), E>,
    ) -> Result<(), E> {
        let in_file = (0..self.in_file).map(Place::File);
        let in_log = (0..self.frames).map(Place::Frame);
        let mut page = vec![0; PAGE_SIZE];
        for place in in_file.chain(in_log) {
            self.read(place, &mut page, false);
            for cell in cells(&page) {
                if let Some(found) = self.row(cell, place) {
                    take(found)?;
                }
            }
        }
        Ok(())
    }

    /// Fills `buffer` from a page, or from the header of a frame; with zeros beyond the end, and where the
    /// disk gives nothing back.
    fn read(&self, place: Place, buffer: &mut [u8], header: bool) {
        let (source, at) = match place {
            Place::File(index) => (&self.file, index * PAGE_SIZE as u64),
            Place::Frame(index) if header => (&self.log, LOG_HEADER + index * FRAME),
            Place::Frame(index) => (&self.log, LOG_HEADER + index * FRAME + FRAME_HEADER),
        };
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let read = source
                .as_ref()
                .map_or(Ok(0), |source| source.read_at(rest, at + done as u64));
            match read {
                Err(_) if self.patience.get() > 0 => {
                    self.patience.set(self.patience.get() - 1);
                    thread::park_timeout(PAUSE);
                }
                Ok(0) | Err(_) => return rest.fill(0),
                Ok(read) => done += read,
            }
        }
    }

    /// The row of a cell, where it is one of ours. What does not fit into the page lies in a chain of
    /// others, of which there may be several copies: the checksum tells which is right.
    fn row(&self, cell: cells::Cell<'_>, place: Place) -> Option<Found> {
        let Some(overflow) = cell.overflow else {
            return decode(cell.seq, cell.local);
        };
        for choose in [nearest_after, newest, in_file] {
            let mut record = cell.local.to_vec();
            let mut next = overflow;
            let mut page = vec![0; PAGE_SIZE];
            while record.len() < cell.length && next != 0 {
                let copies = self.copies.get(&next).map_or(&[][..], Vec::as_slice);
                self.read(choose(copies, next, place), &mut page, false);
                let Some((number, content)) = page.split_first_chunk::<4>() else {
                    break;
                };
                next = u32::from_be_bytes(*number);
                record.extend_from_slice(content);
            }
            record.truncate(cell.length);
            if let Some(found) = decode(cell.seq, &record) {
                return Some(found);
            }
        }
        None
    }
}

fn open_log(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The copy that was written with the page at `from`, or soon before it.
fn nearest_after(copies: &[u64], number: u32, from: Place) -> Place {
    let Place::Frame(from) = from else {
        return in_file(copies, number, from);
    };
    let nearest = copies.iter().min_by_key(|copy| copy.abs_diff(from));
    nearest.map_or_else(
        || in_file(copies, number, Place::Frame(from)),
        |copy| Place::Frame(*copy),
    )
}

fn newest(copies: &[u64], number: u32, from: Place) -> Place {
    copies
        .last()
        .map_or_else(|| in_file(copies, number, from), |copy| Place::Frame(*copy))
}

fn in_file(_: &[u64], number: u32, _: Place) -> Place {
    Place::File(u64::from(number).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A folder can be opened, and every read of it fails.
    #[test]
    fn what_cannot_be_read_is_tried_again_and_then_counts_as_zeros() {
        let folder = TempDir::new().unwrap();
        let pages = Pages::of_both(folder.path(), &folder.path().join("log")).unwrap();
        pages.patience.set(1);
        let mut page = vec![7; PAGE_SIZE];
        pages.read(Place::File(0), &mut page, false);
        assert_eq!(page, vec![0; PAGE_SIZE]);
        assert_eq!(pages.patience.get(), 0);
    }

    #[test]
    fn a_log_that_is_not_there_holds_nothing_and_one_that_cannot_be_opened_is_an_error() {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("file");
        assert_eq!(Pages::of_log(&file).unwrap().frames, 0);
        File::create(&file).unwrap();
        let error = Pages::of_log(&file.join("log")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }
}
