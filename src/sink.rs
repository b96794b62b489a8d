//! The sinks: what speaks to one broker each.
//!
//! A [`Sink`] opens a [`Session`]; a session takes events in order and reports what became of them. It
//! promises:
//! - an event is reported as confirmed only when the broker itself confirmed it;
//! - events with the same key become visible in the order in which they were handed over, also when a
//!   session ends and the next one starts again from the cursor;
//! - it never blocks the runtime, and keeps no more than it was handed.
//!
//! It does not retry for ever, does not read the spool and moves no cursor of the spool's: that is the
//! forwarder's.

#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
pub mod stdout;
mod window;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

pub use window::Window;

use crate::event::{Event, Fingerprint, Kind, Seq};

/// Any error of a client library.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Something that events are published to.
pub trait Sink: Send + 'static {
    /// What a connected client is.
    type Session: Session;

    /// The sink's name: in the configuration, in the log, in metrics, and of its cursor.
    fn name(&self) -> &'static str;

    /// How many events may be handed over and not yet be confirmed.
    fn window(&self) -> usize;

    /// The broker takes each of some events that it did not take together: batches of the sessions to come
    /// are to be smaller.
    fn make_smaller_batches(&mut self) {}

    /// Connects, and makes sure that there is something to publish to. Ends within a bounded time.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Session, SessionError>> + Send;
}

/// A connected client with events in flight.
pub trait Session: Send {
    /// The position that the sink itself has committed, if it keeps one. It counts if it is further than the
    /// spool's cursor and the spool has the event that it names.
    fn committed_position(&self) -> Option<CommittedPosition> {
        None
    }

    /// Publishes events of the window, in order. Never more are unconfirmed than [`Sink::window`] says.
    fn publish(&mut self, window: &Window, seqs: &[Seq]);

    /// What has happened since; waits until there is something. Cancel safe.
    ///
    /// # Errors
    /// An error ends the session: what became of the events in flight is not known.
    fn progress(
        &mut self,
        window: &Window,
    ) -> impl Future<Output = Result<Progress, SessionError>> + Send;

    /// Lets go of the connection, in order where that is quick. Ends within a bounded time.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// A cursor that a sink keeps together with the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommittedPosition {
    /// Every event up to here is with the broker.
    pub seq: Seq,
    /// The event that had this number; none if that is not known.
    pub event: Option<Fingerprint>,
}

/// An event on its way to a broker.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The event's number.
    pub seq: Seq,
    /// The event.
    pub event: Arc<Event>,
    /// Why the broker refused it, if it did: then it goes to the dead letters.
    pub refusal: Option<Refusal>,
}

impl Delivery {
    /// Whether it goes to the dead letters.
    #[must_use]
    pub fn is_dead_letter(&self) -> bool {
        self.refusal.is_some() || self.event.kind == Kind::Rejected
    }
}

/// Why a broker will never take an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// One word: the header `recall_reason`.
    pub reason: &'static str,
    /// For people: the header `recall_detail`.
    pub detail: String,
}

/// The reason where a topic of dead letters takes none.
pub const DEAD_LETTER_TOPIC: &str = "dead_letter_topic";

/// The reason where a queue of dead letters does not take one.
pub const DEAD_LETTER_QUEUE: &str = "dead_letter_queue";

impl Refusal {
    /// Whether it is the place of the dead letters that does not take them.
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

/// What a session reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The broker has these for good.
    Confirmed(Vec<Seq>),
    /// The broker will never take these, and no other event is affected.
    Refused(Vec<(Seq, Refusal)>),
    /// Nothing goes through for now, for this reason; the session goes on by itself.
    Stalled(String),
    /// It goes through again.
    Flowing,
}

/// Why a session ended, or none began: what the forwarder can do about it.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The broker is not there, or does not let us: wait and connect again.
    #[error("{0}")]
    Unavailable(String, #[source] Option<BoxError>),
    /// One of the events in flight will never be taken: find out which by sending each alone.
    #[error("broker refused an event: {0}")]
    Refused(Refusal),
    /// Somebody else has taken this relay's place: do not connect again.
    #[error("{0}")]
    Fenced(String),
}

impl SessionError {
    /// The broker is not there.
    pub fn unavailable(doing: impl Into<String>, error: impl Into<BoxError>) -> Self {
        Self::Unavailable(doing.into(), Some(error.into()))
    }
}
