//! A connection with several channels. Each channel publishes one batch at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, FuturesUnordered};
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::ChannelId;
use lapin::{Channel, Connection, Error, ErrorKind, Event};
use tokio::time::{Instant, sleep_until, timeout};

use super::channel;
use super::config::{Config, ShortName, Unroutable};
use super::connect::Connected;
use super::keyed_queue::KeyedQueue;
use super::message;
use super::publish_batch::{self, Heartbeat, PublishBatch, PublishOutcome};
use super::retry_queue::RetryQueue;
use super::socket::ShutdownOnDrop;
use crate::event::Seq;
use crate::sink::{
    BoxError, DEAD_LETTER_QUEUE, Delivery, Progress, Refusal, Session, SessionError, Window,
};

const NACKED: &str = "broker rejects events (basic.nack): check whether a queue is full";

const BLOCKED: &str = "broker blocks publishers because of a memory or disk alarm";

/// How often to check the connection and the age of the oldest confirms.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// How long a graceful close may take. While the broker blocks the connection, nothing is written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection with messages in flight.
pub struct RabbitMqSession {
    config: Config,
    connection: Arc<Connection>,
    /// Dropped after the connection: it shuts down the socket if the close handshake did not.
    shutdown: ShutdownOnDrop,
    idle: Vec<Channel>,
    /// The maximum number of messages in a batch: a channel's share of the window.
    share: usize,
    batches: FuturesUnordered<BoxFuture<'static, PublishBatch>>,
    queue: KeyedQueue,
    /// Messages that were nacked or returned and are not confirmed yet. While there are any, the sink is stalled.
    retry_queue: RetryQueue,
    refused: Vec<(Seq, Refusal)>,
    /// Why our own queue must have been deleted: it is bound to everything, yet a message was returned.
    queue_gone: Option<String>,
    stalled: Option<String>,
    unreported: bool,
    /// The heartbeat of the batch on each busy channel.
    heartbeats: BTreeMap<ChannelId, Heartbeat>,
    /// Shared with the sink: a host that confirms nothing is not tried again at once.
    has_confirmed: Arc<AtomicBool>,
    check_at: Instant,
    /// What lapin reports about the connection.
    events: BoxStream<'static, Event>,
    /// Why the connection was lost, if that is known.
    connection_error: Option<Error>,
}

impl std::fmt::Debug for RabbitMqSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RabbitMqSession")
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

impl RabbitMqSession {
    pub(super) fn new(
        config: Config,
        connected: Connected,
        has_confirmed: Arc<AtomicBool>,
    ) -> Self {
        let now = Instant::now();
        let share = (config.window / connected.channels.len().max(1)).max(1);
        let events = connected.connection.events_listener().boxed();
        Self {
            config,
            connection: Arc::new(connected.connection),
            shutdown: connected.shutdown,
            idle: connected.channels,
            share,
            batches: FuturesUnordered::new(),
            queue: KeyedQueue::default(),
            retry_queue: RetryQueue::default(),
            refused: Vec::new(),
            queue_gone: None,
            stalled: None,
            unreported: false,
            heartbeats: BTreeMap::new(),
            has_confirmed,
            check_at: now + CHECK_EVERY,
            events,
            connection_error: None,
        }
    }

    /// Starts a batch on each idle channel while messages are ready.
    fn start_batches(&mut self, window: &Window) {
        while self.queue.has_ready() {
            let Some(channel) = self.idle.pop() else {
                return;
            };
            let heartbeat = Heartbeat::new();
            self.heartbeats.insert(channel.id(), heartbeat.clone());
            let ready = self.queue.take_ready(self.share);
            let deliveries = ready
                .iter()
                .filter_map(|seq| window.delivery(*seq))
                .cloned();
            self.batches.push(Box::pin(publish_batch::run(
                Arc::clone(&self.connection),
                channel,
                deliveries.collect(),
                self.config.clone(),
                heartbeat,
            )));
        }
    }

    /// Handles the outcomes of a batch. Returns the confirmed messages.
    fn handle(&mut self, batch: PublishBatch, window: &Window) -> Result<Vec<Seq>, SessionError> {
        self.heartbeats.remove(&batch.id);
        let outcomes = batch.outcomes.map_err(|error| self.publish_failed(error))?;
        self.idle.push(batch.channel);
        let mut confirmed = Vec::with_capacity(outcomes.len());
        for (seq, outcome) in outcomes {
            let Some(delivery) = window.delivery(seq) else {
                continue;
            };
            let is_dead_letter = delivery.is_dead_letter();
            match outcome {
                PublishOutcome::Confirmed => {
                    self.complete(delivery);
                    confirmed.push(seq);
                }
                // A dead letter that is refused too is stored in the spool, so that it does not block the others.
                PublishOutcome::Returned(detail) if is_dead_letter => {
                    self.refuse(delivery, DEAD_LETTER_QUEUE, detail);
                }
                PublishOutcome::Nacked if is_dead_letter => {
                    self.refuse(delivery, DEAD_LETTER_QUEUE, NACKED.to_owned());
                }
                PublishOutcome::Returned(reason)
                    if self.config.unroutable == Unroutable::DeadLetter =>
                {
                    self.refuse(delivery, "unroutable", reason);
                }
                PublishOutcome::Returned(reason) => {
                    let reason =
                        format!("events are unroutable, bind a queue to the exchange: {reason}");
                    if self.config.declare && !self.config.queue.is_empty() {
                        self.queue_gone = Some(reason.clone());
                    }
                    self.retry(delivery, reason);
                }
                PublishOutcome::Nacked => self.retry(delivery, NACKED.to_owned()),
            }
        }
        if !confirmed.is_empty() {
            self.has_confirmed.store(true, Ordering::Relaxed);
        }
        self.update_stalled();
        Ok(confirmed)
    }

    fn complete(&mut self, delivery: &Delivery) {
        self.queue.complete(delivery);
        self.retry_queue.complete(delivery.seq, Instant::now());
    }

    fn refuse(&mut self, delivery: &Delivery, reason: &'static str, detail: String) {
        self.complete(delivery);
        self.refused
            .push((delivery.seq, Refusal { reason, detail }));
    }

    fn retry(&mut self, delivery: &Delivery, reason: String) {
        let routing_key = message::routing_key(&delivery.event);
        self.retry_queue
            .push(delivery.seq, &routing_key, reason, Instant::now());
    }

    /// Reports a change, also if only the reason has changed: operators read the reason.
    fn update_stalled(&mut self) {
        let reason = if self.connection.status().blocked() {
            Some(BLOCKED)
        } else {
            self.retry_queue.reason()
        };
        if self.stalled.as_deref() != reason {
            self.stalled = reason.map(str::to_owned);
            self.unreported = true;
        }
    }

    fn requeue_due(&mut self) {
        for seq in self.retry_queue.take_due(Instant::now()) {
            self.queue.requeue(seq);
        }
    }

    /// The session's error after a batch failed.
    fn publish_failed(&mut self, error: Error) -> SessionError {
        let is_closed = |error: &Error| {
            matches!(
                error.kind(),
                ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_)
            )
        };
        self.read_events();
        // That the connection is closed says less than why.
        let error = match self.connection_error.take() {
            Some(cause) if is_closed(&error) => cause,
            _ => error,
        };
        failure(error, &self.config.exchange)
    }

    fn read_events(&mut self) {
        while let Some(Some(event)) = self.events.next().now_or_never() {
            if let Event::Error(error) = event {
                self.connection_error = Some(error);
            }
        }
    }

    /// Checks whether the connection is closed, blocked, or has not confirmed anything for too long; and whether our
    /// queue was deleted, which the next session declares again.
    fn check(&mut self) -> Result<(), SessionError> {
        self.check_at = Instant::now() + CHECK_EVERY;
        self.read_events();
        let status = self.connection.status();
        if !status.connected() {
            let cause = self.connection_error.take().map(BoxError::from);
            let action = "connection is closed".to_owned();
            return Err(SessionError::Unavailable(action, cause));
        }
        if let Some(reason) = self.queue_gone.take() {
            return Err(SessionError::Unavailable(reason, None));
        }
        if status.blocked() {
            self.heartbeats.values().for_each(Heartbeat::beat);
        }
        self.update_stalled();
        let limit = *self.config.confirm_timeout;
        if self
            .heartbeats
            .values()
            .any(|heartbeat| heartbeat.silence() > limit)
        {
            let limit = self.config.confirm_timeout;
            let reason =
                format!("broker has confirmed nothing for {limit} (rabbitmq.confirm_timeout)");
            return Err(SessionError::Unavailable(reason, None));
        }
        Ok(())
    }
}

/// Maps the error of a failed batch. The broker closes the channel if a message is too large for it, or if the user may
/// not write to the exchange. Only dead letters use the default exchange: they must not block the events, and are
/// stored in the spool.
fn failure(error: Error, exchange: &ShortName) -> SessionError {
    let ErrorKind::ProtocolError(protocol) = error.kind() else {
        return SessionError::unavailable("could not publish", error);
    };
    let text = protocol.get_message().as_str();
    let reason = match protocol.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) if text.contains("size") => {
            "too_large"
        }
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) if names_default_exchange(text) => {
            DEAD_LETTER_QUEUE
        }
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
            let text = channel::explain(&error, "write", &format!("exchange {exchange}"));
            return SessionError::unavailable("could not publish", text);
        }
        _ => return SessionError::unavailable("could not publish", error),
    };
    SessionError::Refused(Refusal {
        reason,
        detail: text.to_owned(),
    })
}

/// RabbitMQ says `access to exchange 'amq.default' in vhost '/' refused for user 'name'`.
fn names_default_exchange(text: &str) -> bool {
    text.contains("exchange 'amq.default'")
}

impl Session for RabbitMqSession {
    fn publish(&mut self, window: &Window, seqs: &[Seq]) {
        for delivery in seqs.iter().filter_map(|seq| window.delivery(*seq)) {
            self.queue.push(delivery);
        }
        self.start_batches(window);
    }

    async fn progress(&mut self, window: &Window) -> Result<Progress, SessionError> {
        loop {
            if !self.refused.is_empty() {
                return Ok(Progress::Refused(std::mem::take(&mut self.refused)));
            }
            if self.unreported {
                self.unreported = false;
                return Ok(match &self.stalled {
                    Some(reason) => Progress::Stalled(reason.clone()),
                    None => Progress::Resumed,
                });
            }
            self.requeue_due();
            self.start_batches(window);
            let retry_at = self.retry_queue.due().unwrap_or(self.check_at);
            tokio::select! {
                Some(batch) = self.batches.next() => {
                    let confirmed = self.handle(batch, window)?;
                    self.start_batches(window);
                    if !confirmed.is_empty() {
                        return Ok(Progress::Confirmed(confirmed));
                    }
                }
                () = sleep_until(self.check_at.min(retry_at)) => {
                    if self.check_at <= Instant::now() {
                        self.check()?;
                    }
                }
            }
        }
    }

    async fn close(self) {
        let close = self.connection.close(200, "OK".into());
        let _ = timeout(CLOSE_TIMEOUT, close).await;
        drop(self.shutdown);
    }
}
