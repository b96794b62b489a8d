//! The high-water mark: a record beside the spool of what its database should contain.
//!
//! A database that has lost its end, its WAL or everything cannot detect that itself. The high-water mark is one line
//! in the lock file, written after each append and each saved cursor, and never synced. After a power cut `last` may be
//! older than the database, which was synced before it, but never newer. `confirmed` may be newer than the saved
//! cursors, which is safe: those events were confirmed.

use uuid::Uuid;

use crate::event::Seq;

/// The contents of the high-water mark.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Watermark {
    /// The spool that it belongs to.
    pub(super) spool_id: Uuid,
    /// The newest event that was committed.
    pub(super) last: Seq,
    /// Every sink had confirmed all events up to here.
    pub(super) confirmed: Seq,
}

impl Watermark {
    /// The length of the line in bytes.
    pub(super) const LENGTH: usize = 109;

    pub(super) fn encode(self) -> String {
        let (id, last, confirmed) = (self.spool_id.simple(), self.last.0, self.confirmed.0);
        let text = format!("spool {id} last {last:020} confirmed {confirmed:020} ");
        let checksum = crc32fast::hash(text.as_bytes());
        format!("{text}crc {checksum:08x}\n")
    }

    /// Parses the line; `None` if it does not match its checksum.
    pub(super) fn decode(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["spool", id, "last", last, "confirmed", confirmed, "crc", _] = words[..] else {
            return None;
        };
        let watermark = Self {
            spool_id: id.parse().ok()?,
            last: Seq(last.parse().ok()?),
            confirmed: Seq(confirmed.parse().ok()?),
        };
        (watermark.encode() == line).then_some(watermark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WATERMARK: Watermark = Watermark {
        spool_id: Uuid::from_u128(1 << 100),
        last: Seq(u64::MAX),
        confirmed: Seq(7),
    };

    #[test]
    fn decode_reverses_encode() {
        for watermark in [WATERMARK, Watermark::default()] {
            let line = watermark.encode();
            assert_eq!(line.len(), Watermark::LENGTH);
            assert_eq!(Watermark::decode(&line), Some(watermark));
        }
    }

    #[test]
    fn decode_rejects_any_changed_byte() {
        let line = WATERMARK.encode();
        for index in 0..line.len() {
            let mut bytes = line.clone().into_bytes();
            bytes[index] ^= 1;
            let changed = str::from_utf8(&bytes).unwrap();
            assert_eq!(Watermark::decode(changed), None, "{index}");
        }
    }
}
