//! Sends the callbacks: when, over how many connections, and until when.

use std::io::{self, IsTerminal as _};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use rustls::ClientConfig;
use tokio::signal;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::callbacks::Callbacks;
use super::connection::{Connection, SendFailure};
use super::request::Requests;
use super::summary::{SendOutcome, Summary};

/// The pause after a failed connection if there is no rate: otherwise, with no relay running, the whole count would be
/// used up within a second.
const PAUSE_WITHOUT_CONNECTION: Duration = Duration::from_millis(100);

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
}

/// What the connections share while they send.
struct SendProgress {
    traffic: Traffic,
    start: Instant,
    summary: Mutex<Summary>,
    bar: ProgressBar,
}

impl Traffic {
    /// Sends until `count` callbacks are answered, `duration` has passed or Ctrl-C is pressed. Then waits for
    /// the answers to open requests, unless Ctrl-C is pressed again. Also returns how long that took.
    ///
    /// # Errors
    /// Fails if the relay cannot be reached at the start.
    pub async fn run(self, duration: Duration) -> anyhow::Result<(Summary, Duration)> {
        let connections = self.connect().await?;
        let progress = Arc::new(SendProgress {
            bar: bar(self.count)?,
            summary: Mutex::new(Summary::new()?),
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
        let mut interrupted = false;
        loop {
            tokio::select! {
                done = tasks.join_next() => match done {
                    Some(done) => done.context("sending")??,
                    None => break,
                },
                () = &mut time_is_up, if !*stop.borrow() => {
                    stop.send_replace(true);
                }
                pressed = &mut ctrl_c => {
                    pressed.context("waiting for Ctrl-C")?;
                    ctrl_c.set(signal::ctrl_c());
                    if interrupted {
                        break;
                    }
                    interrupted = true;
                    stop.send_replace(true);
                }
            }
        }
        let elapsed = progress.start.elapsed();
        tasks.shutdown().await;
        progress.bar.finish_and_clear();
        let progress = Arc::into_inner(progress).context("a connection is still sending")?;
        let summary = progress.summary.into_inner();
        Ok((summary.unwrap_or_else(PoisonError::into_inner), elapsed))
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
            let outcome = self.send(number, &mut connection).await?;
            self.count(|summary| summary.ended(&outcome, begin.elapsed()));
            self.bar.inc(1);
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

    async fn send(&self, number: u64, connection: &mut Connection) -> anyhow::Result<SendOutcome> {
        let callback = self.traffic.callbacks.make(number)?;
        let now = u64::try_from(Timestamp::now().as_second())?;
        let request = self.traffic.requests.request(callback, now)?;
        self.count(Summary::sent);
        Ok(
            match timeout(self.traffic.timeout, connection.post(request)).await {
                Ok(Ok(answer)) => SendOutcome::Answered(answer),
                Ok(Err(failure)) => SendOutcome::Failed(failure),
                Err(_) => SendOutcome::TimedOut,
            },
        )
    }

    fn count(&self, change: impl FnOnce(&mut Summary)) {
        change(&mut self.summary.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A progress bar on stderr, hidden if stderr is not a terminal.
fn bar(count: u64) -> anyhow::Result<ProgressBar> {
    let (bar, template) = match count {
        u64::MAX => (ProgressBar::no_length(), "{spinner} {human_pos}  {per_sec}"),
        _ => (
            ProgressBar::new(count),
            "{wide_bar} {human_pos}/{human_len}  {per_sec}  {eta}",
        ),
    };
    bar.set_draw_target(if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    });
    Ok(bar.with_style(ProgressStyle::with_template(template).context("making a progress bar")?))
}
