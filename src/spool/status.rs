//! What the spool holds, and whether it takes more.

use super::AppendError;
use crate::event::Seq;

/// The state of the open spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Why no event can be appended now; none while it can.
    pub refusing: Option<AppendError>,
    /// The oldest event kept is this one, or the next to come.
    pub first: Seq,
    /// The newest event is this one, or the one before the first.
    pub last: Seq,
    /// Bytes of all used pages.
    pub used_bytes: u64,
}

impl Status {
    /// How many numbers there are from the oldest event kept to the newest, gaps included.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        (self.last.0 + 1).saturating_sub(self.first.0)
    }
}
