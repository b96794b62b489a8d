//! A connection with several channels, each of which runs one round after the other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::ChannelId;
use lapin::{Channel, Connection, Error, ErrorKind};
use tokio::time::{Instant, sleep_until, timeout};

use super::line::CutOnDrop;
use super::message::Message;
use super::order::Order;
use super::round::{self, Outcome, Pulse, Round};
use super::{Config, Unroutable};
use crate::event::Seq;
use crate::sink::{DEAD_LETTER_QUEUE, Delivery, Progress, Refusal, Session, SessionError};

/// Channels of a connection: while one waits for its last confirms, others publish. With too few of them
/// much of the window is confirmed and waits for the end of its round.
pub(super) const CHANNELS: usize = 16;

/// After how long a message is sent again that no queue took, or that was nacked.
const RETRY: Duration = Duration::from_secs(1);

const NACKED: &str = "the broker does not accept events (nack): a queue is full?";

/// How often the connection and the age of the confirms are looked at.
const CHECK: Duration = Duration::from_millis(500);

/// How long a close in order may take: while the broker blocks, nothing is written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection with messages in flight.
pub struct RabbitMqSession {
    config: Config,
    connection: Arc<Connection>,
    /// After the connection: what a close in order did not end is cut off.
    cut: CutOnDrop,
    idle: Vec<Channel>,
    rounds: FuturesUnordered<BoxFuture<'static, Round>>,
    order: Order,
    /// Messages that did not get through, and when to send them again.
    held: VecDeque<(Instant, Message)>,
    /// Those and their like that are being sent again just now: while there are any, not all goes through.
    troubled: BTreeSet<Seq>,
    refused: VecDeque<(Seq, Refusal)>,
    /// Why our own queue must be gone: it takes everything, and something was returned.
    queue_gone: Option<String>,
    stalled: Option<String>,
    to_tell: bool,
    /// The round on each busy channel.
    pulses: BTreeMap<ChannelId, Pulse>,
    /// Told to the sink: a host that confirms nothing is not tried again at once.
    has_confirmed: Arc<AtomicBool>,
    check_at: Instant,
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
        connection: Connection,
        cut: CutOnDrop,
        channels: Vec<Channel>,
        has_confirmed: Arc<AtomicBool>,
    ) -> Self {
        let now = Instant::now();
        Self {
            config,
            connection: Arc::new(connection),
            cut,
            idle: channels,
            rounds: FuturesUnordered::new(),
            order: Order::default(),
            held: VecDeque::new(),
            troubled: BTreeSet::new(),
            refused: VecDeque::new(),
            queue_gone: None,
            stalled: None,
            to_tell: false,
            pulses: BTreeMap::new(),
            has_confirmed,
            check_at: now + CHECK,
        }
    }

    /// Starts a round on every channel that is free, while messages are ready.
    fn start_rounds(&mut self) {
        let share = (self.config.window / CHANNELS).max(1);
        while self.order.has_ready() {
            let Some(channel) = self.idle.pop() else {
                return;
            };
            let pulse = Pulse::new();
            self.pulses.insert(channel.id(), pulse.clone());
            let messages = self.order.take_ready(share);
            let connection = Arc::clone(&self.connection);
            self.rounds
                .push(Box::pin(round::run(connection, channel, messages, pulse)));
        }
    }

    /// Takes in what a round brought; returns what was confirmed.
    fn settle(&mut self, round: Round) -> Result<Vec<Seq>, SessionError> {
        self.pulses.remove(&round.id);
        let outcomes = round.outcomes.map_err(failure)?;
        self.idle.push(round.channel);
        let mut confirmed = Vec::with_capacity(outcomes.len());
        for (message, outcome) in outcomes {
            match outcome {
                Outcome::Confirmed => {
                    self.order.done(&message);
                    self.troubled.remove(&message.seq);
                    confirmed.push(message.seq);
                }
                // What not even the dead letters take stays in the spool: it must not hold up the rest.
                Outcome::Returned(detail) if message.key.is_none() => {
                    self.refuse(&message, DEAD_LETTER_QUEUE, detail);
                }
                Outcome::Nacked if message.key.is_none() => {
                    self.refuse(&message, DEAD_LETTER_QUEUE, NACKED.to_owned());
                }
                Outcome::Returned(reason) if self.config.unroutable == Unroutable::DeadLetter => {
                    self.refuse(&message, "unroutable", reason);
                }
                Outcome::Returned(reason) => {
                    let reason = format!("no queue takes events: {reason}");
                    if self.config.declare && !self.config.queue.is_empty() {
                        self.queue_gone = Some(reason.clone());
                    }
                    self.hold(message, reason);
                }
                Outcome::Nacked => self.hold(message, NACKED.to_owned()),
            }
        }
        if !confirmed.is_empty() {
            self.has_confirmed.store(true, Ordering::Relaxed);
        }
        if self.troubled.is_empty() && !self.connection.status().blocked() {
            self.tell(None);
        }
        Ok(confirmed)
    }

    fn refuse(&mut self, message: &Message, reason: &'static str, detail: String) {
        self.order.done(message);
        self.troubled.remove(&message.seq);
        self.refused
            .push_back((message.seq, Refusal { reason, detail }));
    }

    fn hold(&mut self, message: Message, reason: String) {
        self.troubled.insert(message.seq);
        self.held.push_back((Instant::now() + RETRY, message));
        self.tell(Some(reason));
    }

    fn tell(&mut self, stalled: Option<String>) {
        // Also where only the reason changes: it is what people look at.
        if self.stalled != stalled {
            self.to_tell = true;
            self.stalled = stalled;
        }
    }

    fn retry_held(&mut self) {
        let now = Instant::now();
        while let Some((due, _)) = self.held.front()
            && *due <= now
            && let Some((_, message)) = self.held.pop_front()
        {
            self.order.again(message);
        }
    }

    /// Looks at the connection: gone, blocked, or silent for too long; and at our queue, which the next
    /// session declares again.
    fn check(&mut self) -> Result<(), SessionError> {
        self.check_at = Instant::now() + CHECK;
        let status = self.connection.status();
        if !status.connected() {
            return Err(SessionError::Unavailable(
                "the connection is gone".to_owned(),
                None,
            ));
        }
        if let Some(reason) = self.queue_gone.take() {
            return Err(SessionError::Unavailable(reason, None));
        }
        if status.blocked() {
            self.pulses.values().for_each(Pulse::beat);
            let reason = "the broker blocks publishers (a memory or disk alarm)";
            self.tell(Some(reason.to_owned()));
        } else if self.troubled.is_empty() {
            self.tell(None);
        }
        let limit = *self.config.confirm_timeout;
        if self.pulses.values().any(|pulse| pulse.silence() > limit) {
            let limit = self.config.confirm_timeout;
            let reason = format!("no confirm within {limit} (rabbitmq.confirm_timeout)");
            return Err(SessionError::Unavailable(reason, None));
        }
        Ok(())
    }
}

/// What a failed round means. The broker closes the channel on a message that is too large for it, and on
/// one for an exchange that the user may not write to. The default exchange is for dead letters alone: they
/// must not stop the events, and are kept in the spool.
fn failure(error: Error) -> SessionError {
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
    fn publish(&mut self, deliveries: Vec<Delivery>) {
        for delivery in &deliveries {
            self.order.push(Message::new(delivery, &self.config));
        }
        self.start_rounds();
    }

    async fn progress(&mut self) -> Result<Progress, SessionError> {
        loop {
            if let Some((seq, refusal)) = self.refused.pop_front() {
                return Ok(Progress::Refused(seq, refusal));
            }
            if self.to_tell {
                self.to_tell = false;
                return Ok(match &self.stalled {
                    Some(reason) => Progress::Stalled(reason.clone()),
                    None => Progress::Flowing,
                });
            }
            self.retry_held();
            self.start_rounds();
            let retry_at = self.held.front().map_or(self.check_at, |(due, _)| *due);
            tokio::select! {
                Some(round) = self.rounds.next() => {
                    let confirmed = self.settle(round)?;
                    self.start_rounds();
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
        drop(self.cut);
    }
}
