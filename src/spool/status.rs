//! What the spool holds, and whether it accepts more.

use super::append::AppendError;
use crate::event::Seq;

/// The state of the open spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Why no event can be appended now; `None` if events can be appended.
    pub refusing: Option<AppendError>,
    /// The oldest event kept; if there is none, the next one.
    pub first: Seq,
    /// The newest event; if there is none, the number before `first`.
    pub last: Seq,
    /// Bytes of all used pages.
    pub used_bytes: u64,
    /// How many dead letters it keeps because no broker accepted them.
    pub dead_letters: u64,
    /// Bytes that events and dead letters may take: `spool.max_bytes`, or less if the disk has less space.
    pub capacity_bytes: u64,
    /// How many bytes of `capacity_bytes` are left if all forwarded events are purged: an estimate.
    pub available_bytes: u64,
}

impl Status {
    /// How many numbers there are from the oldest event kept to the newest, including gaps.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        self.first.count_to(self.last)
    }
}
