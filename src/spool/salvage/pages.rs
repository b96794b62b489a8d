//! Reads events directly from SQLite's pages, without trusting the structures above them.
//!
//! A row of `events` is never changed after it was written, has its own checksum, and shares its number with no other
//! committed event. So any copy that matches its checksum is correct, wherever it is: in a page of the file, in a
//! committed page of the WAL, or in a page that is no longer in use.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::record::{self, cells, decode};
use super::wal::{self, Frame};
use crate::spool::files;
use crate::spool::schema::{PAGE_SIZE, StoredEvent};

/// The maximum number of retries of failed reads, over all pages, and the pause before each: a disk may recover soon.
const RETRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// The pages of a database that no connection has open, and of its WAL.
#[derive(Debug)]
pub(super) struct Pages {
    file: File,
    length: u64,
    wal: Option<File>,
    frames: Vec<Frame>,
    /// The position in the WAL of the newest copy of a page.
    newest: HashMap<u32, u64>,
    retries: Cell<u32>,
}

impl Pages {
    pub(super) fn open(database: &Path) -> io::Result<Self> {
        let wal = match File::open(files::wal(database)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            wal => Some(wal?),
        };
        let file = File::open(database)?;
        let mut pages = Self {
            length: file.metadata()?.len(),
            file,
            wal,
            frames: Vec::new(),
            newest: HashMap::new(),
            retries: Cell::new(RETRIES),
        };
        if let Some(wal) = &pages.wal {
            pages.frames = wal::committed(|buffer, at| pages.read(wal, buffer, at));
        }
        let newest = pages.frames.iter().map(|frame| (frame.page, frame.at));
        pages.newest = newest.collect();
        Ok(pages)
    }

    /// Visits every row that is found, in no particular order; some rows are visited more than once.
    pub(super) fn each_row<E>(
        &self,
        mut visit: impl FnMut(StoredEvent) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut page = vec![0; PAGE_SIZE];
        let in_file = (0..self.length)
            .step_by(PAGE_SIZE)
            .map(|at| (&self.file, at));
        let in_wal = self.frames.iter().map(|frame| frame.at);
        for (file, at) in in_file.chain(self.wal.iter().flat_map(|wal| {
            let in_wal = in_wal.clone();
            in_wal.map(move |at| (wal, at))
        })) {
            self.read(file, &mut page, at);
            for cell in cells(&page) {
                if let Some(row) = self.row(cell) {
                    visit(row)?;
                }
            }
        }
        Ok(())
    }

    /// Decodes a cell's row, if it is one of ours. The part that does not fit into the page is in a chain of overflow
    /// pages.
    fn row(&self, cell: record::Cell<'_>) -> Option<StoredEvent> {
        let Some(mut next) = cell.overflow else {
            return decode(cell.seq, cell.local);
        };
        let mut record = cell.local.to_vec();
        let mut page = vec![0; PAGE_SIZE];
        while record.len() < cell.length && next != 0 {
            match (&self.wal, self.newest.get(&next)) {
                (Some(wal), Some(at)) => self.read(wal, &mut page, *at),
                _ => self.read(
                    &self.file,
                    &mut page,
                    (u64::from(next) - 1) * PAGE_SIZE as u64,
                ),
            }
            let (number, content) = page.split_first_chunk::<4>()?;
            next = u32::from_be_bytes(*number);
            record.extend_from_slice(content);
        }
        record.truncate(cell.length);
        decode(cell.seq, &record)
    }

    /// Fills a buffer from the file, with zeros after the end of the file and from the first byte that cannot be read.
    fn read(&self, file: &File, buffer: &mut [u8], at: u64) {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, at + filled as u64) {
                Err(_) if self.retries.get() > 0 => {
                    self.retries.set(self.retries.get() - 1);
                    thread::park_timeout(PAUSE);
                }
                Ok(0) | Err(_) => return rest.fill(0),
                Ok(read) => filled += read,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// The file is a folder: it can be opened, but every read fails.
    #[test]
    fn a_failing_read_is_retried_and_then_yields_zeros() {
        let folder = TempDir::new().unwrap();
        let pages = Pages::open(folder.path()).unwrap();
        pages.retries.set(1);
        let mut page = vec![7; PAGE_SIZE];
        pages.read(&pages.file, &mut page, 0);
        assert_eq!(page, vec![0; PAGE_SIZE]);
        assert_eq!(pages.retries.get(), 0);
    }
}
