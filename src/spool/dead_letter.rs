//! A dead letter that the spool keeps.

use std::sync::Arc;

use crate::event::{Event, Seq};

/// An event that a sink could publish neither to its topic nor as a dead letter, and the reason.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The sink.
    pub sink: &'static str,
    /// The event's number.
    pub seq: Seq,
    /// The event.
    pub event: Arc<Event>,
    /// The reason as one word.
    pub reason: &'static str,
    /// The reason for people.
    pub detail: String,
}
