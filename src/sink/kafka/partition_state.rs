//! Tracks on which partitions the brokers know this producer, and which records wait until they do.
//!
//! A broker that knows an idempotent producer refuses a batch if the previous one is missing. From an unknown producer,
//! it accepts any sequence number: if the first of several batches in flight fails and the second is appended, the
//! first can no longer be appended, and librdkafka even reports it as delivered. So the first record on a partition is
//! sent alone, and the others wait until it is confirmed.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::event::Seq;

/// Brokers forget a producer that has appended nothing for a day (`producer.id.expiration.ms`). Long before that, the
/// relay treats itself as unknown again.
const KNOWN_FOR: Duration = Duration::from_hours(1);

/// A partition that records go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Partition {
    /// In the dead-letter topic, not in the events' topic.
    pub dead_letter: bool,
    pub number: i32,
}

/// The partitions of one session.
#[derive(Debug, Default)]
pub(super) struct Partitions(BTreeMap<Partition, PartitionState>);

#[derive(Debug)]
struct PartitionState {
    known: bool,
    in_flight: usize,
    /// When a record was last confirmed, or sent with no other in flight.
    since: Instant,
    waiting: VecDeque<Seq>,
}

impl Partitions {
    fn state(&mut self, partition: Partition, now: Instant) -> &mut PartitionState {
        self.0.entry(partition).or_insert_with(|| PartitionState {
            known: false,
            in_flight: 0,
            since: now,
            waiting: VecDeque::new(),
        })
    }

    /// Whether a record may be sent now; otherwise it must wait.
    pub(super) fn is_free(&mut self, partition: Partition, now: Instant) -> bool {
        let state = self.state(partition, now);
        if state.in_flight == 0 && now.duration_since(state.since) >= KNOWN_FOR {
            state.known = false;
        }
        state.known || state.in_flight == 0
    }

    /// Queues a record until it may be sent.
    pub(super) fn wait(&mut self, partition: Partition, seq: Seq, now: Instant) {
        self.state(partition, now).waiting.push_back(seq);
    }

    /// Records that a record was sent.
    pub(super) fn sent(&mut self, partition: Partition, now: Instant) {
        let state = self.state(partition, now);
        if state.in_flight == 0 {
            state.since = now;
        }
        state.in_flight += 1;
    }

    /// Records that a record was confirmed. Returns the records that waited for it, in order.
    pub(super) fn confirmed(&mut self, partition: Partition, now: Instant) -> VecDeque<Seq> {
        let state = self.state(partition, now);
        state.in_flight = state.in_flight.saturating_sub(1);
        state.since = now;
        state.known = true;
        std::mem::take(&mut state.waiting)
    }

    /// A partition whose records have been in flight for so long that its broker may have forgotten this producer. Only
    /// a new producer can continue there.
    pub(super) fn possibly_expired(&self, now: Instant) -> Option<Partition> {
        let possibly_expired = |state: &PartitionState| {
            state.in_flight > 0 && now.saturating_duration_since(state.since) >= KNOWN_FOR
        };
        let mut partitions = self.0.iter();
        partitions
            .find(|(_, state)| possibly_expired(state))
            .map(|(partition, _)| *partition)
    }
}

/// The partition of a key, out of `count`: the one that a Java client would choose.
#[expect(clippy::cast_possible_wrap, reason = "31 bits")]
pub(super) fn partition_of(key: &[u8], count: i32) -> i32 {
    (murmur2(key) & 0x7fff_ffff) as i32 % count.max(1)
}

/// Murmur2 with the seed of Kafka's clients.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a key is shorter than a callback"
)]
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(M);
        mixed ^= mixed >> 24;
        hash = hash.wrapping_mul(M) ^ mixed.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Partition = Partition {
        dead_letter: false,
        number: 3,
    };
    const OTHER: Partition = Partition {
        dead_letter: true,
        number: 3,
    };

    fn waiting(partitions: &mut Partitions, now: Instant) -> Vec<u64> {
        let free = partitions.confirmed(ONE, now);
        free.iter().map(|seq| seq.0).collect()
    }

    #[test]
    fn the_first_record_on_a_partition_is_sent_alone() {
        let (mut partitions, now) = (Partitions::default(), Instant::now());
        assert!(partitions.is_free(ONE, now));
        partitions.sent(ONE, now);
        assert!(!partitions.is_free(ONE, now));
        assert!(partitions.is_free(OTHER, now));
        for seq in 2..=4 {
            partitions.wait(ONE, Seq(seq), now);
        }
        assert_eq!(waiting(&mut partitions, now), [2, 3, 4]);
        for _ in 0..3 {
            assert!(partitions.is_free(ONE, now));
            partitions.sent(ONE, now);
        }
    }

    #[test]
    fn an_idle_partition_becomes_unknown_after_an_hour() {
        let (mut partitions, start) = (Partitions::default(), Instant::now());
        partitions.sent(ONE, start);
        assert!(waiting(&mut partitions, start).is_empty());
        let just_before = start + Duration::from_secs(3599);
        partitions.sent(ONE, just_before);
        assert!(partitions.is_free(ONE, just_before));
        assert!(waiting(&mut partitions, just_before).is_empty());
        let later = just_before + Duration::from_secs(3600);
        assert!(partitions.is_free(ONE, later));
        partitions.sent(ONE, later);
        assert!(!partitions.is_free(ONE, later));
    }

    #[test]
    fn gives_up_a_partition_without_confirms_for_an_hour() {
        let (mut partitions, start) = (Partitions::default(), Instant::now());
        partitions.sent(ONE, start);
        let just_before = start + Duration::from_secs(3599);
        partitions.sent(ONE, just_before);
        assert_eq!(partitions.possibly_expired(just_before), None);
        let later = start + Duration::from_secs(3600);
        assert_eq!(partitions.possibly_expired(later), Some(ONE));
        assert!(waiting(&mut partitions, later).is_empty());
        assert_eq!(partitions.possibly_expired(later), None);
    }

    #[test]
    fn keys_hash_as_in_java() {
        for (key, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
        assert_eq!(partition_of(b"foobar", 6), 1_357_151_166 % 6);
    }
}
