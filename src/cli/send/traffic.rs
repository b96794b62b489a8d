//! Sends the callbacks: when, over how many connections, and until when.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use jiff::Timestamp;
use rustls::ClientConfig;
use tokio::signal;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout};

use super::callbacks::Callbacks;
use super::connection::{Connection, SendFailure};
use super::live::{LiveCounts, LiveLine};
use super::request::Requests;
use super::summary::{RightAnswer, SendOutcome, Summary};

/// The pause after a failed connection if there is no rate: otherwise, with no relay running, the whole count would be
/// used up within a second.
const PAUSE_WITHOUT_CONNECTION: Duration = Duration::from_millis(100);

/// How often the line on a terminal is updated: it shows rate and latencies of the last second.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// A callback that is later than this at the end of a run was held up by an earlier one, and not by the timer.
const MAX_TIMER_DELAY: Duration = Duration::from_millis(100);

/// What to send, and how fast.
#[derive(Debug)]
pub struct Traffic {
    /// Creates the bodies.
    pub callbacks: Callbacks,
    /// Builds the requests.
    pub requests: Requests,
    /// What connections need for `https`.
    pub tls: Option<Arc<ClientConfig>>,
    /// The number of callbacks.
    pub count: u64,
    /// The number of connections; each sends one callback at a time. There are at least as many conversations.
    pub connections: u64,
    /// Callbacks per second on all connections; if it is not set, a connection sends the next callback when it has the
    /// previous answer.
    pub rate: Option<f64>,
    /// How long to wait for an answer.
    pub timeout: Duration,
    /// Which answers are right for callbacks that are not recalls.
    pub right_for_others: RightAnswer,
}

/// What the connections share while they send.
struct SendProgress {
    traffic: Traffic,
    start: Instant,
    summary: Mutex<Summary>,
}

impl Traffic {
    /// Sends until `count` callbacks are answered, `duration` has passed or Ctrl-C is pressed. Then waits for
    /// the answers to open requests, unless Ctrl-C is pressed again. Also returns how long that took.
    ///
    /// # Errors
    /// Fails if the relay cannot be reached at the start.
    pub async fn run(self, duration: Duration) -> anyhow::Result<(Summary, Duration)> {
        let connections = self.connect().await?;
        let total = (self.count < u64::MAX).then_some(self.count);
        let mut summary = Summary::new()?;
        let mut live = LiveLine::new(total, &mut summary)?;
        let progress = Arc::new(SendProgress {
            summary: Mutex::new(summary),
            start: Instant::now(),
            traffic: self,
        });
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for (of, connection) in (0..).zip(connections) {
            let share = Arc::clone(&progress).send_share(of, connection, stopped.clone());
            tasks.spawn(share);
        }
        drop(stopped);

        // The end of `duration` and the first Ctrl-C only stop new requests. The loop ends when all connections have
        // finished, or at the second Ctrl-C.
        let mut time_is_up = pin!(sleep(duration));
        let mut ctrl_c = pin!(signal::ctrl_c());
        let mut ticks = interval_at(progress.start + LINE_INTERVAL, LINE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopped_at = None;
        let mut interrupted = false;
        loop {
            tokio::select! {
                done = tasks.join_next() => match done {
                    Some(done) => done.context("sending")??,
                    None => break,
                },
                () = &mut time_is_up, if stopped_at.is_none() => {
                    stopped_at = Some(Instant::now());
                    stop.send_replace(true);
                }
                pressed = &mut ctrl_c => {
                    pressed.context("waiting for Ctrl-C")?;
                    ctrl_c.set(signal::ctrl_c());
                    if interrupted {
                        break;
                    }
                    interrupted = true;
                    stopped_at.get_or_insert_with(Instant::now);
                    stop.send_replace(true);
                }
                _ = ticks.tick(), if live.is_some() => {
                    if let Some(live) = &mut live {
                        live.update(progress.count(LiveCounts::take));
                    }
                }
            }
        }
        let elapsed = progress.start.elapsed();
        tasks.shutdown().await;
        drop(live);
        let progress = Arc::into_inner(progress).context("a connection is still sending")?;
        Ok((progress.finish(stopped_at), elapsed))
    }

    /// Opens all connections, so that the latency of the first callbacks does not include it.
    async fn connect(&self) -> anyhow::Result<Vec<Connection>> {
        let endpoint = &self.requests.endpoint;
        let limit = self.timeout;
        let mut opening: JoinSet<_> = (0..self.connections)
            .map(|_| {
                let mut connection = Connection::new(endpoint.clone(), self.tls.clone());
                async move {
                    timeout(limit, connection.open())
                        .await
                        .context("timed out")?
                        .map_err(|failure| anyhow!("{failure}"))?;
                    anyhow::Ok(connection)
                }
            })
            .collect();
        let mut connections = Vec::new();
        while let Some(opened) = opening.join_next().await {
            let connection = opened.context("connecting")?;
            connections.push(connection.with_context(|| {
                format!(
                    "no connection to {} (--url; is the relay running?)",
                    endpoint.authority
                )
            })?);
        }
        Ok(connections)
    }
}

impl SendProgress {
    /// Sends the callbacks of one connection, one at a time.
    async fn send_share(
        self: Arc<Self>,
        of: u64,
        mut connection: Connection,
        mut stopped: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let Traffic {
            callbacks,
            count,
            connections,
            rate,
            ..
        } = &self.traffic;
        for number in callbacks.order().share(of, *connections, *count) {
            let Some(begin) = self.wait_until_due(number, &mut stopped).await else {
                break;
            };
            let (outcome, right) = self.send(number, &mut connection).await?;
            self.count(|summary| summary.ended(&outcome, right, begin.elapsed()));
            let is_unconnected = matches!(
                outcome,
                SendOutcome::Failed(SendFailure::Connect(_) | SendFailure::Handshake(_))
            );
            if rate.is_none() && is_unconnected {
                sleep(PAUSE_WITHOUT_CONNECTION).await;
            }
        }
        Ok(())
    }

    /// Waits until a callback is due, and returns the instant that its latency is measured from; `None` if sending has
    /// been stopped.
    async fn wait_until_due(
        &self,
        number: u64,
        stopped: &mut watch::Receiver<bool>,
    ) -> Option<Instant> {
        let now = Instant::now();
        let due = self.traffic.rate.map_or(now, |rate| {
            #[allow(clippy::cast_precision_loss, reason = "exact up to 2^53 callbacks")]
            let seconds = number as f64 / rate;
            self.start + Duration::from_secs_f64(seconds)
        });
        if due <= now {
            return (!*stopped.borrow()).then_some(due);
        }
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => None,
            () = sleep_until(due) => Some(Instant::now()),
        }
    }

    /// Sends a callback. Returns what became of it, and which answers are right for it.
    async fn send(
        &self,
        number: u64,
        connection: &mut Connection,
    ) -> anyhow::Result<(SendOutcome, RightAnswer)> {
        let callback = self.traffic.callbacks.make(number)?;
        let right = if callback.kind.is_recall() {
            RightAnswer::Ok
        } else {
            self.traffic.right_for_others
        };
        let now = u64::try_from(Timestamp::now().as_second())?;
        let request = self.traffic.requests.request(callback, now)?;
        self.count(Summary::sent);
        let answer = timeout(self.traffic.timeout, connection.post(request)).await;
        let outcome = match answer {
            Ok(Ok(answer)) => SendOutcome::Answered(answer),
            Ok(Err(failure)) => SendOutcome::Failed(failure),
            Err(_) => SendOutcome::TimedOut,
        };
        Ok((outcome, right))
    }

    fn count<T>(&self, change: impl FnOnce(&mut Summary) -> T) -> T {
        change(&mut self.summary.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The counts of a run whose callbacks were no longer sent after `stopped_at`.
    fn finish(self, stopped_at: Option<Instant>) -> Summary {
        let summary = self.summary.into_inner();
        let mut summary = summary.unwrap_or_else(PoisonError::into_inner);
        if let (Some(rate), Some(stopped_at)) = (self.traffic.rate, stopped_at) {
            // Without these, a relay that stalls until the end of the run would hide the callbacks that it has held up.
            let sending = stopped_at.duration_since(self.start);
            let due = due_within(sending.saturating_sub(MAX_TIMER_DELAY), rate);
            summary.unsent = due.min(self.traffic.count).saturating_sub(summary.sent);
        }
        summary
    }
}

/// How many callbacks are due within a time, at a rate per second. The first one is due at once.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the product is not negative; what is too large becomes the largest number"
)]
fn due_within(time: Duration, rate: f64) -> u64 {
    ((time.as_secs_f64() * rate) as u64).saturating_add(1)
}
