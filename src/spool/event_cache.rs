//! A cache of the newest events: a sink that keeps up does not have to read back what was just written.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::event::{Event, Seq};

/// The size of the cache in bytes. In tests it is small, so that readers must read the file.
const BYTES: usize = if cfg!(test) { 4 << 10 } else { 512 << 10 };

/// The memory that an event takes in addition to its body.
const OVERHEAD: usize = size_of::<Event>() + 128;

/// A bounded window of events that are on disk; the oldest are evicted first.
#[derive(Debug, Default)]
pub(super) struct EventCache(Mutex<CachedEvents>);

#[derive(Debug, Default)]
struct CachedEvents {
    events: VecDeque<(Seq, Arc<Event>)>,
    bytes: usize,
}

impl EventCache {
    fn window(&self) -> MutexGuard<'_, CachedEvents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds committed events, in order.
    pub(super) fn add(&self, events: impl IntoIterator<Item = (Seq, Arc<Event>)>) {
        let mut window = self.window();
        for (seq, event) in events {
            window.bytes += cost(&event);
            window.events.push_back((seq, event));
        }
        while window.bytes > BYTES
            && let Some((_, oldest)) = window.events.pop_front()
        {
            window.bytes -= cost(&oldest);
        }
    }

    /// At most `limit` consecutive events from number `first` on; empty if `first` is not cached.
    pub(super) fn from(&self, first: Seq, limit: usize) -> Vec<(Seq, Arc<Event>)> {
        let window = self.window();
        let start = window.events.partition_point(|(seq, _)| *seq < first);
        let mut expected = first;
        let follows = |(seq, _): &&(Seq, Arc<Event>)| {
            let follows = *seq == expected;
            expected = expected.next();
            follows
        };
        let events = window.events.range(start..).take(limit);
        events.take_while(follows).cloned().collect()
    }
}

fn cost(event: &Event) -> usize {
    event.body.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::tests::event;

    fn numbered(seq: u64, bytes: usize) -> (Seq, Arc<Event>) {
        (Seq(seq), Arc::new(event(seq.into(), vec![b'x'; bytes])))
    }

    fn seqs(cache: &EventCache, first: u64, limit: usize) -> Vec<u64> {
        let events = cache.from(Seq(first), limit);
        events.iter().map(|(seq, _)| seq.0).collect()
    }

    #[test]
    fn returns_consecutive_cached_events() {
        let cache = EventCache::default();
        assert_eq!(seqs(&cache, 1, 10), [0; 0]);
        cache.add([3, 4, 5, 8, 9].map(|seq| numbered(seq, 10)));
        assert_eq!(seqs(&cache, 3, 10), [3, 4, 5]);
        assert_eq!(seqs(&cache, 4, 10), [4, 5]);
        assert_eq!(seqs(&cache, 3, 2), [3, 4]);
        assert_eq!(seqs(&cache, 8, 10), [8, 9]);
        for not_there in [1, 2, 6, 7, 10] {
            assert_eq!(seqs(&cache, not_there, 10), [0; 0], "{not_there}");
        }
        assert_eq!(cache.from(Seq(5), 1), [numbered(5, 10)]);
    }

    #[test]
    fn evicts_the_oldest_events() {
        let cache = EventCache::default();
        cache.add((1..=10).map(|seq| numbered(seq, BYTES / 4 - OVERHEAD)));
        assert_eq!(seqs(&cache, 6, 10), [0; 0]);
        assert_eq!(seqs(&cache, 7, 10), [7, 8, 9, 10]);
        cache.add([numbered(11, BYTES)]);
        assert_eq!(seqs(&cache, 11, 10), [0; 0], "too large to be cached");
    }
}
