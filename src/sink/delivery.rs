//! An event on its way to a broker, and why a broker refuses one.

use std::fmt;
use std::sync::Arc;

use crate::event::{Event, Kind, Seq};

/// An event to be published.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The event's number.
    pub seq: Seq,
    /// The event.
    pub event: Arc<Event>,
    /// Why the broker refused the event, if it did. The event is then published as a dead letter.
    pub refusal: Option<Refusal>,
    /// Whether the sink has confirmed it before: it is sent again, and moves no position.
    pub is_resent: bool,
}

impl Delivery {
    /// Whether it is published as a dead letter.
    #[must_use]
    pub fn is_dead_letter(&self) -> bool {
        self.refusal.is_some() || self.event.kind == Kind::Rejected
    }
}

/// Why a broker will never accept an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// One word, for the header `recall_reason`.
    pub reason: &'static str,
    /// The explanation for people, for the header `recall_detail`.
    pub detail: String,
}

/// The reason if the dead-letter topic refuses a dead letter.
pub const DEAD_LETTER_TOPIC: &str = "dead_letter_topic";

/// The reason if the dead-letter queue refuses a dead letter.
pub const DEAD_LETTER_QUEUE: &str = "dead_letter_queue";

impl Refusal {
    /// Whether the dead-letter topic or queue itself refuses dead letters.
    #[must_use]
    pub fn is_of_dead_letters(&self) -> bool {
        [DEAD_LETTER_TOPIC, DEAD_LETTER_QUEUE].contains(&self.reason)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.detail, self.reason)
    }
}
