//! The note beside the spool: what its file should hold, told by another file.
//!
//! A database that has lost its end, its log, or all it had cannot tell so itself. The note is one line in
//! the lock file, written after each commit and never synced: after a power cut it may be older than the
//! database, which was synced before; it is never newer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use uuid::Uuid;

use crate::event::Seq;

/// What the note says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// Whose it is; nil where that was not known.
    pub(super) spool_id: Uuid,
    /// The newest event that was committed.
    pub(super) last: Seq,
    /// Every sink had confirmed all up to here.
    pub(super) confirmed: Seq,
    /// The database was found to be damaged: whoever opens it next has to rescue what it holds.
    pub(super) damaged: bool,
}

const LENGTH: usize = 117;

impl Note {
    fn encode(self) -> String {
        let state = if self.damaged { "damaged" } else { "whole" };
        let (last, confirmed) = (self.last.0, self.confirmed.0);
        let id = self.spool_id.simple();
        let text = format!("spool {id} last {last:020} confirmed {confirmed:020} {state:7} ");
        let checksum = crc32fast::hash(text.as_bytes());
        format!("{text}crc {checksum:08x}\n")
    }

    fn decode(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [
            "spool",
            id,
            "last",
            last,
            "confirmed",
            confirmed,
            state,
            "crc",
            _,
        ] = words[..]
        else {
            return None;
        };
        let note = Self {
            spool_id: id.parse().ok()?,
            last: Seq(last.parse().ok()?),
            confirmed: Seq(confirmed.parse().ok()?),
            damaged: state == "damaged",
        };
        (note.encode() == line).then_some(note)
    }

    /// The note in a lock file; none where there is none, or it is damaged itself.
    pub(super) fn read(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; LENGTH];
        let mut length = 0;
        while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, length as u64)? {
                0 => break,
                read => length += read,
            }
        }
        let line = bytes
            .get(..length)
            .and_then(|line| str::from_utf8(line).ok());
        Ok(line.and_then(Self::decode))
    }

    pub(super) fn write(self, file: &File) -> io::Result<()> {
        file.write_all_at(self.encode().as_bytes(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Note {
        Note {
            spool_id: Uuid::from_u128(1 << 100),
            last: Seq(u64::MAX),
            confirmed: Seq(7),
            damaged: true,
        }
    }

    #[test]
    fn is_read_as_it_was_written_over_another() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Note::read(&file).unwrap(), None);
        for note in [note(), Note::default(), note()] {
            note.write(&file).unwrap();
            assert_eq!(Note::read(&file).unwrap(), Some(note));
        }
        assert_eq!(
            Note::default().encode(),
            "spool 00000000000000000000000000000000 last 00000000000000000000 \
             confirmed 00000000000000000000 whole   crc 900cf812\n"
        );
    }

    #[test]
    fn is_nothing_once_a_byte_of_it_has_changed() {
        let line = note().encode();
        for index in 0..line.len() {
            let mut bytes = line.clone().into_bytes();
            bytes[index] ^= 1;
            assert_eq!(
                Note::decode(str::from_utf8(&bytes).unwrap()),
                None,
                "{index}"
            );
        }
    }
}
