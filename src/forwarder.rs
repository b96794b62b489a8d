//! From the spool to a sink, one forwarder for each.
//!
//! Promises:
//! - events are handed over in the spool's order, and the cursor moves only over what is confirmed
//!   without a gap;
//! - while the broker is away it tries again for ever, with growing and jittered pauses, and says so in
//!   the log once when that begins and once when it ends;
//! - an event that the broker refuses when it is sent alone goes to the dead letters, and the others go
//!   on;
//! - where somebody else has taken its place it publishes nothing more until the next start;
//! - at a stop it drains what is in the spool until the deadline, and leaves the rest there.
//!
//! One forwarder knows nothing of another: a broker that is down holds nobody else up.

mod poison_search;
mod session;
mod state;
mod throttle;

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::error;

pub use state::{Health, SinkMetrics, SinkState};

use crate::sink::{SessionError, Sink, Window};
use crate::spool::{Cursor, Reader, Spool};
use poison_search::PoisonSearch;

/// How long connecting may take: longer than any client library's own limit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// A broker that has confirmed nothing for so long, with events in flight, counts as stalled.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// Takes events from the spool to one sink.
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
}

/// What the session says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Flowing,
    /// Some events do not get through, whatever becomes of the others.
    Stalled,
}

/// When a forwarder ends.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// No event will be appended any more: end when all are confirmed.
    pub drain: CancellationToken,
    /// End now.
    pub now: CancellationToken,
}

/// How a session ended.
enum SessionEnd {
    /// The forwarder's work is done.
    Stopped,
    /// Connect again at once: one event has to be treated in another way.
    Again,
    /// The session is lost: wait, then connect again.
    Lost(SessionError),
}

impl<S: Sink> Forwarder<S> {
    /// A forwarder for a sink whose cursor is `cursor`.
    pub fn new(sink: S, spool: Spool, cursor: Cursor, state: SinkState, stop: Stop) -> Self {
        Self {
            sink,
            reader: spool.reader(cursor.position()),
            spool,
            cursor,
            state,
            stop,
            window: Window::default(),
            poison_search: PoisonSearch::default(),
            flow: Flow::Flowing,
            stalled_after: STALLED_AFTER,
        }
    }

    /// Forwards until it is stopped.
    pub async fn run(mut self) {
        let mut pauses = pauses();
        loop {
            let error = match self.connect().await {
                None => return,
                Some(Err(error)) => error,
                Some(Ok(session)) => {
                    let before = self.cursor.position();
                    let end = self.forward(session).await;
                    self.window.restart();
                    if self.cursor.position() > before {
                        pauses = self::pauses();
                    }
                    match end {
                        SessionEnd::Stopped => return,
                        SessionEnd::Again => continue,
                        SessionEnd::Lost(error) => error,
                    }
                }
            };
            self.state.down(&error);
            if let SessionError::Fenced(reason) = error {
                let sink = self.sink.name();
                error!(
                    sink,
                    reason, "nothing is published here until the next start"
                );
                self.stop.drain.cancelled().await;
                return;
            }
            let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
            let stopped = self.stopped();
            tokio::select! {
                () = stopped => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// A session; none where it is time to stop.
    async fn connect(&mut self) -> Option<Result<S::Session, SessionError>> {
        let stopped = self.stopped();
        tokio::select! {
            () = stopped => None,
            connected = timeout(CONNECT_TIMEOUT, self.sink.connect()) => {
                Some(connected.unwrap_or_else(|elapsed| {
                    Err(SessionError::unavailable("connecting took too long", elapsed))
                }))
            }
        }
    }

    /// Waits until a forwarder without a session has to end: at the deadline, or when nothing is left.
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
