//! Divides dead letters into requests to the relay.

use std::collections::BTreeSet;

use crate::control::DeadLetterKey;

/// A request names at most this many dead letters: its line stays short.
const BATCH: usize = 500;

/// Dead letters of one sink each, in the order of their events.
pub(super) fn batches(keys: &BTreeSet<DeadLetterKey>) -> Vec<Vec<DeadLetterKey>> {
    let keys: Vec<_> = keys.iter().cloned().collect();
    let of_one_sink = keys.chunk_by(|a, b| a.sink == b.sink);
    let batches = of_one_sink.flat_map(|keys| keys.chunks(BATCH));
    batches.map(<[_]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_one_sink_and_at_most_500_in_order() {
        let key = |sink: &str, seq| DeadLetterKey {
            sink: sink.to_owned(),
            seq,
        };
        let rabbitmq = (1..=3).rev().map(|seq| key("rabbitmq", seq));
        let kafka = (1..=1001).rev().map(|seq| key("kafka", seq));
        let keys = rabbitmq.chain(kafka).collect();
        let batches = batches(&keys);
        let lengths: Vec<_> = batches.iter().map(Vec::len).collect();
        assert_eq!(lengths, [500, 500, 1, 3]);
        let kafka: Vec<_> = batches[..3].concat();
        assert!(kafka.iter().map(|key| key.seq).eq(1..=1001));
        assert!(kafka.iter().all(|key| key.sink == "kafka"));
        assert_eq!(batches[3], [1, 2, 3].map(|seq| key("rabbitmq", seq)));
        assert!(super::batches(&BTreeSet::new()).is_empty());
    }
}
