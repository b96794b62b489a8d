//! RabbitMQ, through lapin: publisher confirms, `mandatory`, persistent messages.
//!
//! Promises beyond those of every sink:
//! - at most one event of a conversation is unconfirmed, so a nack cannot let a later event overtake it;
//! - of the messages that the broker rejects for now, only a few are published again, because each retry may add a copy
//!   to the queues that accept it;
//! - a message that cannot be routed to a queue does not count as confirmed: it is retried, or becomes
//!   a dead letter, as configured by `rabbitmq.unroutable`;
//! - while the broker blocks publishers (a memory or disk alarm), nothing times out.
//!
//! Only the forwarder reconnects: lapin's own recovery is off.

mod broker_uri;
mod channel;
mod config;
mod connect;
mod keyed_queue;
mod message;
mod probe;
mod publish_batch;
mod retry_queue;
mod session;
mod socket;
mod subscribe;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tracing::warn;

pub use broker_uri::BrokerUri;
pub use config::{Config, QueueType, ShortName, Unroutable};
pub use probe::{Existence, NodeProbe};
pub use session::RabbitMqSession;
pub use subscribe::subscribe;

use tokio::sync::watch;

use super::{SessionError, Sink};
use crate::telemetry::LoggedTexts;
use connect::Attempt;

/// The name of this sink.
pub const NAME: &str = "rabbitmq";

/// A RabbitMQ cluster.
#[derive(Debug)]
pub struct RabbitMq {
    settings: watch::Receiver<Config>,
    next_host: usize,
    attempt: Attempt,
    /// Whether the last session has confirmed anything; false if the last attempt to connect failed.
    last_confirmed: Option<Arc<AtomicBool>>,
    logged: LoggedTexts,
}

impl RabbitMq {
    /// The cluster that `settings` describe. Only those of the connection may change.
    #[must_use]
    pub fn new(settings: watch::Receiver<Config>) -> Self {
        Self {
            settings,
            next_host: 0,
            attempt: Attempt::First,
            last_confirmed: None,
            logged: LoggedTexts::default(),
        }
    }
}

impl Sink for RabbitMq {
    type Session = RabbitMqSession;

    fn name(&self) -> &'static str {
        NAME
    }

    fn window(&self) -> usize {
        self.settings.borrow().window
    }

    async fn connection_changed(&mut self) {
        super::changed(&mut self.settings).await;
    }

    /// Tries one host. If it confirms nothing, the next call tries the next host.
    async fn connect(&mut self) -> Result<RabbitMqSession, SessionError> {
        let confirmed_nothing = |confirmed: &Arc<AtomicBool>| !confirmed.load(Ordering::Relaxed);
        if self.last_confirmed.as_ref().is_some_and(confirmed_nothing) {
            self.next_host += 1;
        }
        let config = self.settings.borrow_and_update().clone();
        let uris = &config.uri;
        let Some(uri) = uris.get(self.next_host % uris.len().max(1)) else {
            return Err(SessionError::Unavailable(
                "rabbitmq.uri names no host".to_owned(),
                None,
            ));
        };
        let uri = uri.parts().clone();
        let has_confirmed = Arc::new(AtomicBool::new(false));
        self.last_confirmed = Some(Arc::clone(&has_confirmed));
        let connected = connect::open(&config, uri, self.attempt, connect::CONNECT_TIMEOUT).await;
        self.attempt = Attempt::Reconnect;
        let connected = connected?;
        if let Some(reason) = &connected.dead_letter_queue_error
            && self.logged.is_due(reason, Instant::now())
        {
            warn!(
                code = "dead_letter_queue_missing",
                sink = NAME,
                reason,
                "dead-letter queue is missing or unusable; dead letters stay in the spool until it is declared \
                 (rabbitmq.dead_letter_queue)"
            );
        }
        Ok(RabbitMqSession::new(config, connected, has_confirmed))
    }
}
