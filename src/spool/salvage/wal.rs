//! Finds the frames of a WAL that SQLite itself would recover.
//!
//! As in SQLite's document "WAL-mode File Format", a frame is valid if its salts match the header, its checksum matches
//! the running one, and it ends a commit or a later valid frame does. The frames of a failed transaction are not valid.

use crate::spool::schema::PAGE_SIZE;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const FRAME: usize = FRAME_HEADER + PAGE_SIZE;

/// The header's first word without its last bit, which is the byte order of the checksum's words.
const MAGIC: u32 = 0x377f_0682;

/// A page in a WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// Counts from 1.
    pub(super) page: u32,
    /// The position of the page's content in the WAL.
    pub(super) at: u64,
}

/// The committed frames of a WAL, oldest first. `read` fills a buffer from a position in the file, with zeros after its
/// end.
pub(super) fn committed(read: impl Fn(&mut [u8], u64)) -> Vec<Frame> {
    let mut header = [0; HEADER];
    read(&mut header, 0);
    let [magic, _, _, _, salt_1, salt_2, sums @ ..]: [u32; HEADER / 4] = words(&header);
    let read_word = match magic ^ MAGIC {
        0 => u32::from_le_bytes,
        1 => u32::from_be_bytes,
        _ => return Vec::new(),
    };
    let mut sum = checksum([0; 2], &header[..24], read_word);
    if sum != sums {
        return Vec::new();
    }
    let (mut frames, mut until_commit) = (Vec::new(), 0);
    let mut frame = vec![0; FRAME];
    for at in (HEADER as u64..).step_by(FRAME) {
        read(&mut frame, at);
        let Some((header, content)) = frame.split_first_chunk::<FRAME_HEADER>() else {
            break;
        };
        let [page, database_size, first_salt, second_salt, sums @ ..]: [u32; FRAME_HEADER / 4] =
            words(header);
        sum = checksum(checksum(sum, &header[..8], read_word), content, read_word);
        if [first_salt, second_salt] != [salt_1, salt_2] || sum != sums {
            break;
        }
        let at = at + FRAME_HEADER as u64;
        frames.push(Frame { page, at });
        // Only the last frame of a commit contains the database's size.
        if database_size != 0 {
            until_commit = frames.len();
        }
    }
    frames.truncate(until_commit);
    frames
}

/// The big-endian words of a header.
fn words<const BYTES: usize, const WORDS: usize>(header: &[u8; BYTES]) -> [u32; WORDS] {
    let (words, _) = header.as_chunks::<4>();
    std::array::from_fn(|index| words.get(index).copied().map_or(0, u32::from_be_bytes))
}

fn checksum(sum: [u32; 2], bytes: &[u8], read_word: fn([u8; 4]) -> u32) -> [u32; 2] {
    let (pairs, _) = bytes.as_chunks::<8>();
    pairs.iter().fold(sum, |[first, second], pair| {
        let (words, _) = pair.as_chunks::<4>();
        let word = |index: usize| words.get(index).copied().map_or(0, read_word);
        let first = first.wrapping_add(word(0)).wrapping_add(second);
        [first, second.wrapping_add(word(1)).wrapping_add(first)]
    })
}
