//! The sinks. Each one is the client of one broker.
//!
//! A [`Sink`] opens a [`Session`]. A session publishes events in order and reports their outcomes. It promises:
//! - an event is reported as confirmed only when the broker itself has confirmed it;
//! - events with the same key become visible in the order in which they were published, even if a session ends and the
//!   next one starts again from the cursor;
//! - it never blocks the runtime, and holds no more events than it was given.
//!
//! A sink does not retry without limit, read the spool, or move the spool's cursor: the forwarder does.
//!
//! For people, the modules of the brokers also subscribe to what the sink publishes, without taking it from anybody.

mod confirms;
mod delivery;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
pub mod stdout;
mod subscription;
mod window;

use std::future::Future;

pub use confirms::{ConfirmWaiter, Confirms};
pub use delivery::{DEAD_LETTER_QUEUE, DEAD_LETTER_TOPIC, Delivery, Refusal};
pub use subscription::{CredentialsError, SubscriptionItem};
pub use window::Window;

#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
use tokio::sync::watch;

use crate::event::{Event, Fingerprint, Seq};

/// Any error of a client library.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A destination that events are published to.
pub trait Sink: Send + 'static {
    /// A connected client.
    type Session: Session;

    /// The sink's name in the configuration, the log and the metrics, and the name of its cursor.
    fn name(&self) -> &'static str;

    /// The maximum number of published events that are not confirmed yet.
    fn window(&self) -> usize;

    /// The broker accepts events individually that it refused as a batch: later sessions must make smaller batches.
    fn make_smaller_batches(&mut self) {}

    /// Completes when the settings of the connection, or its certificates, have changed since [`Self::connect`] was
    /// last called. Cancel safe.
    fn connection_changed(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Connects, and ensures that the topics or queues exist. Returns within a bounded time.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Session, SessionError>> + Send;
}

/// Completes when the settings have changed since they were last read. Cancel safe.
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
async fn changed<T>(settings: &mut watch::Receiver<T>) {
    if settings.changed().await.is_err() {
        // Nothing can change them any more.
        std::future::pending::<()>().await;
    }
}

/// How a sink divides events into partitions. The broker confirms the events of one partition independently of others.
#[derive(Debug, Clone, Copy)]
pub struct Partitioning {
    /// How many partitions there are, at least one.
    pub count: usize,
    /// The partition of an event, counted from 0, given the number of partitions.
    pub partition_of: fn(&Event, usize) -> usize,
}

impl Default for Partitioning {
    fn default() -> Self {
        Self {
            count: 1,
            partition_of: |_, _| 0,
        }
    }
}

/// A connected client with events in flight.
pub trait Session: Send {
    /// Which events may be confirmed although others are not.
    fn partitioning(&self) -> Partitioning {
        Partitioning::default()
    }

    /// The position committed at the broker, if the sink keeps one. It is used if it is higher than the spool's cursor
    /// and the spool has the event that it names.
    fn committed_position(&self) -> Option<CommittedPosition> {
        None
    }

    /// Publishes events of the window, in order. At most [`Sink::window`] events are unconfirmed at any time.
    fn publish(&mut self, window: &Window, seqs: &[Seq]);

    /// Waits for the next report. Cancel safe.
    ///
    /// # Errors
    /// An error ends the session: the outcome of the events in flight is unknown.
    fn progress(
        &mut self,
        window: &Window,
    ) -> impl Future<Output = Result<Progress, SessionError>> + Send;

    /// The client's last error, if there was one within the last minute: it may say why nothing is confirmed.
    fn last_error(&self) -> Option<String> {
        None
    }

    /// Closes the connection, gracefully if that is quick. Returns within a bounded time.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// A cursor that a sink keeps together with the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommittedPosition {
    /// Every event up to this one is confirmed.
    pub seq: Seq,
    /// The event that had this number; none if that is unknown.
    pub event: Option<Fingerprint>,
}

/// A session's report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The broker has confirmed these.
    Confirmed(Vec<Seq>),
    /// The broker will never accept these; no other event is affected.
    Refused(Vec<(Seq, Refusal)>),
    /// The broker accepts nothing for now, for this reason. The session resumes by itself.
    Stalled(String),
    /// The broker accepts events again.
    Resumed,
}

/// Why a session ended or could not be opened, by how the forwarder handles it.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The broker cannot be reached, or denies access: wait and reconnect.
    #[error("{0}")]
    Unavailable(String, #[source] Option<BoxError>),
    /// One of the events in flight will never be accepted: bisect to find it.
    #[error("broker refused an event: {0}")]
    Refused(Refusal),
    /// Another process has taken over this relay's identity: do not reconnect.
    #[error("{0}")]
    Fenced(String),
}

impl SessionError {
    /// Makes an [`Self::Unavailable`] error.
    pub fn unavailable(action: impl Into<String>, error: impl Into<BoxError>) -> Self {
        Self::Unavailable(action.into(), Some(error.into()))
    }
}
