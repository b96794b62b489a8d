//! The identity of a record, which librdkafka hands back with its report.

use crate::event::Seq;
use crate::sink::Delivery;

/// Identifies a record in flight: the event's number, and whether it is a dead letter. Dead letters must not block the
/// events: if their topic refuses them, they are stored in the spool.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordId(usize);

const _: () = assert!(
    usize::BITS >= 64,
    "a record's id is handed through a pointer"
);

impl RecordId {
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    pub(super) fn of(delivery: &Delivery) -> Self {
        let dead_letter = usize::from(delivery.is_dead_letter());
        Self(((delivery.seq.0 as usize) << 1) | dead_letter)
    }

    pub(super) const fn opaque(self) -> usize {
        self.0
    }

    pub(super) const fn from_opaque(opaque: usize) -> Self {
        Self(opaque)
    }

    pub(super) const fn seq(self) -> Seq {
        Seq(self.0 as u64 >> 1)
    }

    pub(super) const fn is_dead_letter(self) -> bool {
        self.0 & 1 == 1
    }
}
