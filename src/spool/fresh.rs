//! The newest events, still in memory: who follows closely need not read back what was just written.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::event::{Seq, Stored};

/// Bytes of events that are remembered. In tests so few that readers fall behind.
const BYTES: usize = if cfg!(test) { 4 << 10 } else { 512 << 10 };

/// What an event takes besides its bytes.
const OVERHEAD: usize = size_of::<Stored>() + 64;

/// A bounded window of events that are on disk; the oldest go first.
#[derive(Debug, Default)]
pub(super) struct Fresh(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    events: VecDeque<Stored>,
    bytes: usize,
}

impl Fresh {
    fn window(&self) -> MutexGuard<'_, Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers events that were committed, in their order.
    pub(super) fn remember(&self, events: impl IntoIterator<Item = Stored>) {
        let mut window = self.window();
        for stored in events {
            window.bytes += cost(&stored);
            window.events.push_back(stored);
        }
        while window.bytes > BYTES
            && let Some(oldest) = window.events.pop_front()
        {
            window.bytes -= cost(&oldest);
        }
    }

    /// The events from number `first` on without a gap, at most `limit`; none where `first` is not
    /// remembered.
    pub(super) fn from(&self, first: Seq, limit: usize) -> Vec<Stored> {
        let window = self.window();
        let start = window.events.partition_point(|stored| stored.seq < first);
        let mut expected = first;
        let follows = |stored: &&Stored| {
            let follows = stored.seq == expected;
            expected = expected.next();
            follows
        };
        let events = window.events.range(start..).take(limit);
        events.take_while(follows).cloned().collect()
    }
}

fn cost(stored: &Stored) -> usize {
    stored.event.bytes.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::event::{Event, Kind};

    fn stored(seq: u64, bytes: usize) -> Stored {
        Stored {
            seq: Seq(seq),
            event: Event {
                kind: Kind::Recalled,
                id: Uuid::from_u128(seq.into()),
                bytes: vec![b'x'; bytes].into(),
            },
        }
    }

    fn seqs(fresh: &Fresh, first: u64, limit: usize) -> Vec<u64> {
        let events = fresh.from(Seq(first), limit);
        events.iter().map(|stored| stored.seq.0).collect()
    }

    #[test]
    fn it_gives_what_follows_without_a_gap() {
        let fresh = Fresh::default();
        assert_eq!(seqs(&fresh, 1, 10), [0; 0]);
        fresh.remember([3, 4, 5, 8, 9].map(|seq| stored(seq, 10)));
        assert_eq!(seqs(&fresh, 3, 10), [3, 4, 5]);
        assert_eq!(seqs(&fresh, 4, 10), [4, 5]);
        assert_eq!(seqs(&fresh, 3, 2), [3, 4]);
        assert_eq!(seqs(&fresh, 8, 10), [8, 9]);
        for not_there in [1, 2, 6, 7, 10] {
            assert_eq!(seqs(&fresh, not_there, 10), [0; 0], "{not_there}");
        }
        assert_eq!(
            fresh.from(Seq(5), 1)[0].event.bytes,
            Bytes::from("x".repeat(10))
        );
    }

    #[test]
    fn it_forgets_the_oldest() {
        let fresh = Fresh::default();
        fresh.remember((1..=10).map(|seq| stored(seq, BYTES / 4 - OVERHEAD)));
        assert_eq!(seqs(&fresh, 6, 10), [0; 0]);
        assert_eq!(seqs(&fresh, 7, 10), [7, 8, 9, 10]);
        fresh.remember([stored(11, BYTES)]);
        assert_eq!(seqs(&fresh, 11, 10), [0; 0], "too large to be remembered");
    }
}
