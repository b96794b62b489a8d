//! What an append returns.

use crate::event::Seq;

/// What became of an event that was to be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is on disk now.
    New(Seq),
    /// An event with the same id is among the recent ones; it may have been purged since.
    Repeated,
}

/// Why an event was not appended. It is not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// `spool.max_bytes` is reached by events that are not forwarded yet, or the disk is full.
    #[error("spool is full: {0}")]
    Full(String),
    /// `spool.max_dead_letter_bytes` is reached.
    #[error("{0}")]
    DeadLettersFull(String),
    /// `spool.max_waiting` callbacks wait for a commit already.
    #[error("too many callbacks are waiting for the disk")]
    Busy,
    /// The commit failed; a later one may succeed.
    #[error("spool could not write: {0}")]
    Io(String),
    /// What was written can no longer be trusted: the process must end and start again.
    #[error("spool failed: {0}")]
    Failed(String),
    /// The file is not what was written: the process must end, and the next start salvages what it holds.
    #[error("spool is damaged: {0}; the next start keeps what can be read of it")]
    Damaged(String),
}

impl AppendError {
    /// Whether nothing can be appended any more by this process.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Damaged(_))
    }
}
