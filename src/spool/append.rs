//! The result of an append.

use crate::event::Seq;

/// The outcome of an append that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// The event is on disk now.
    New(Seq),
    /// The number of an event with the same id, which is among the recent ones; it may have been purged since.
    Repeated(Seq),
}

/// Why an event was not appended. It is not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Unforwarded events have reached `spool.max_bytes`, or the disk is full.
    #[error("spool is full: {0}")]
    Full(String),
    /// `spool.max_dead_letter_bytes` is reached.
    #[error("{0}")]
    DeadLettersFull(String),
    /// `spool.max_waiting` callbacks are already waiting for a commit.
    #[error("too many callbacks are waiting for a commit (spool.max_waiting)")]
    Busy,
    /// The commit failed; a later one may succeed.
    #[error("spool write failed: {0}")]
    Io(String),
    /// It is no longer certain what is on disk: the process must end and be started again.
    #[error("spool failed: {0}; the relay must be restarted")]
    Failed(String),
    /// The file is damaged: the process must end, and the next start salvages the events.
    #[error("spool is damaged: {0}; the next start salvages it")]
    Damaged(String),
}

impl AppendError {
    /// Whether this process can no longer append anything.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Damaged(_))
    }
}
