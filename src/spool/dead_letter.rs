//! An event that the spool keeps as a dead letter.

use std::sync::Arc;

use crate::event::{Event, Seq};

/// An event that a sink could publish neither to its topic nor as a dead letter, and why.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The sink.
    pub sink: &'static str,
    /// The event's number.
    pub seq: Seq,
    /// The event.
    pub event: Arc<Event>,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, for people.
    pub detail: String,
}
