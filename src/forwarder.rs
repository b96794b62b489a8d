//! Publishes events from the spool to a sink; each sink has its own forwarder.
//!
//! Promises:
//! - events are published in the spool's order, and the cursor advances only over a contiguous range of confirmed
//!   events;
//! - while the broker is down, it retries without limit, with exponential backoff and jitter, and logs when the outage
//!   begins, when its reason changes, how long it lasts, and when it ends;
//! - an event that the broker refuses even when it is sent alone becomes a dead letter, and publishing continues;
//! - if the sink's connection settings change, it finishes the events in flight and reconnects;
//! - if another process has taken over its identity, it stops publishing until restarted;
//! - on shutdown it drains the spool until the deadline, and leaves the rest in the spool;
//! - if asked, it sends events again that it has confirmed before (`resend`), without moving the cursor.
//!
//! Forwarders are independent of each other: a broker that is down does not delay other sinks.

mod poison_search;
mod resend;
mod session;
mod state;
mod throttle;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use resend::{Resend, ResendEnd, ResendError, ResendProgress, ResendQueue, ResendSource};
pub use state::{Health, SinkMetrics, SinkState};

use crate::event::Seq;
use crate::sink::{Confirms, SessionError, Sink, Window, stdout};
use crate::spool::{Cursor, Reader, Spool, Status};
use crate::telemetry::chain;
use poison_search::PoisonSearch;
use resend::{ActiveResend, ResendRequest, ResendRequests};
use state::Backlog;

/// How long connecting may take: longer than the client libraries' own timeouts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// A broker that confirms nothing for this long while events are in flight counts as stalled.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// How often to check whether an outage must be logged again.
const REMIND_EVERY: Duration = Duration::from_secs(1);

/// Publishes events from the spool to one sink.
#[derive(Debug)]
pub struct Forwarder<S> {
    sink: S,
    spool: Spool,
    reader: Reader,
    cursor: Cursor,
    state: SinkState,
    stop: Stop,
    window: Window,
    poison_search: PoisonSearch,
    flow: Flow,
    stalled_after: Duration,
    requests: ResendRequests,
    /// A resend that begins when nothing is in flight.
    requested: Option<ResendRequest>,
    resend: Option<ActiveResend>,
    confirms: Option<Arc<Confirms>>,
}

/// A sink as the rest of the program sees it.
#[derive(Debug, Clone)]
pub struct SinkHandle {
    /// Its state.
    pub state: SinkState,
    /// Its cursor.
    pub cursor: Cursor,
    /// Sends events again.
    pub resends: ResendQueue,
    /// What it has confirmed, if answers wait for that.
    pub confirms: Option<Arc<Confirms>>,
}

impl SinkHandle {
    /// The handle of a sink that is not connected yet.
    #[must_use]
    pub fn new(sink: &'static str, cursor: Cursor) -> Self {
        Self {
            state: SinkState::new(sink),
            cursor,
            resends: ResendQueue::default(),
            confirms: None,
        }
    }

    /// How many events it has not confirmed, up to the event number `last`.
    #[must_use]
    pub fn lag(&self, last: Seq) -> u64 {
        last.0.saturating_sub(self.cursor.position().0)
    }
}

/// How many events are on this machine alone, at most: confirmed by no broker yet, or stored as dead letters that none
/// has accepted. `None` without a broker.
#[must_use]
pub fn at_risk(sinks: &[SinkHandle], status: &Status) -> Option<u64> {
    let brokers = (sinks.iter()).filter(|sink| sink.state.sink() != stdout::NAME);
    let unconfirmed = brokers.map(|sink| sink.lag(status.last)).min()?;
    Some(unconfirmed + status.dead_letters)
}

/// The status that the session reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Flowing,
    /// Some events are not accepted, even if others are confirmed.
    Stalled,
}

/// Stops a forwarder.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// No more events will be appended: stop when all are confirmed.
    pub drain: CancellationToken,
    /// Stop now.
    pub now: CancellationToken,
}

/// How a session ended.
enum SessionEnd {
    /// The forwarder was stopped.
    Stopped,
    /// Reconnect at once: one event must be handled differently, or the connection's settings have changed.
    Reconnect,
    /// The session is lost: pause, then reconnect.
    Lost(SessionError),
}

impl<S: Sink> Forwarder<S> {
    /// The forwarder of a sink.
    pub fn new(sink: S, spool: Spool, handle: &SinkHandle, stop: Stop) -> Self {
        Self {
            sink,
            reader: spool.reader(handle.cursor.position()),
            spool,
            cursor: handle.cursor.clone(),
            state: handle.state.clone(),
            stop,
            window: Window::default(),
            poison_search: PoisonSearch::default(),
            flow: Flow::Flowing,
            stalled_after: STALLED_AFTER,
            requests: handle.resends.requests(),
            requested: None,
            resend: None,
            confirms: handle.confirms.clone(),
        }
    }

    /// Forwards until stopped.
    pub async fn run(self) {
        let reminding = remind(
            self.state.clone(),
            self.spool.clone(),
            self.cursor.clone(),
            self.confirms.clone(),
        );
        tokio::select! {
            () = self.forward_until_stopped() => {}
            never = reminding => match never {},
        }
    }

    async fn forward_until_stopped(mut self) {
        self.forward_through_sessions().await;
        self.stop_resend("relay is stopping, or the sink has stopped publishing");
    }

    async fn forward_through_sessions(&mut self) {
        let mut pauses = pauses();
        loop {
            let error = match self.connect().await {
                None => return,
                Some(Err(error)) => error,
                Some(Ok(session)) => {
                    let before = self.cursor.position();
                    let end = self.forward(session).await;
                    self.window.restart();
                    // The session made progress: begin with the shortest pause again.
                    if self.cursor.position() > before {
                        pauses = self::pauses();
                    }
                    match end {
                        SessionEnd::Stopped => return,
                        SessionEnd::Reconnect => continue,
                        SessionEnd::Lost(error) => error,
                    }
                }
            };
            let is_final = matches!(error, SessionError::Fenced(_));
            self.down(&chain(&error), is_final);
            if is_final {
                // Reconnecting would fence the other process: wait for the shutdown.
                self.stop.drain.cancelled().await;
                return;
            }
            let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
            let stopped = self.stopped();
            tokio::select! {
                () = stopped => return,
                () = self.sink.connection_changed() => pauses = self::pauses(),
                () = sleep(pause) => {}
            }
        }
    }

    fn backlog(&self) -> Backlog {
        Backlog::of(&self.spool, &self.cursor)
    }

    fn up(&self) {
        self.state.up(|| self.backlog(), Instant::now());
    }

    fn down(&self, reason: &str, is_final: bool) {
        self.state
            .down(reason, is_final, self.backlog(), Instant::now());
    }

    /// Connects. None if the forwarder must stop.
    async fn connect(&mut self) -> Option<Result<S::Session, SessionError>> {
        let stopped = self.stopped();
        tokio::select! {
            () = stopped => None,
            connected = timeout(CONNECT_TIMEOUT, self.sink.connect()) => {
                Some(connected.unwrap_or_else(|elapsed| {
                    let limit = CONNECT_TIMEOUT.as_secs();
                    let action = format!("connecting took longer than {limit} s");
                    Err(SessionError::unavailable(action, elapsed))
                }))
            }
        }
    }

    /// Waits until a forwarder without a session must stop: at the deadline, or when every event is confirmed.
    fn stopped(&self) -> impl Future<Output = ()> + Send + use<S> {
        let (stop, spool, cursor) = (self.stop.clone(), self.spool.clone(), self.cursor.clone());
        async move {
            let nothing_left = async {
                stop.drain.cancelled().await;
                if cursor.position() < spool.status().last {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = stop.now.cancelled() => {}
                () = nothing_left => {}
            }
        }
    }
}

/// Logs a lasting outage again, whatever the forwarder waits for.
async fn remind(
    state: SinkState,
    spool: Spool,
    cursor: Cursor,
    confirms: Option<Arc<Confirms>>,
) -> Infallible {
    let mut tick = interval(REMIND_EVERY);
    loop {
        tick.tick().await;
        state.remind(|| Backlog::of(&spool, &cursor), Instant::now());
        if let Some(confirms) = &confirms {
            confirms.remind(tokio::time::Instant::now());
        }
    }
}

const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(SHORTEST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_factor(1.6)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests;
