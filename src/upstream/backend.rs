//! The backend: decides whether a callback is handed on, and what its answer says about the backend.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Response;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use super::breaker::{BackendHealth, Breaker, Permission};
use super::client::BackendClient;
use super::config::{BackendUrl, Config, OnFailure};
use super::metrics::{RequestCount, UpstreamMetrics};
use super::outgoing::{Outgoing, ReceivedHeaders, Reserve};
use super::slots::{ExchangeSlot, Sender, Slots};
use super::{UpstreamError, headers};
use crate::telemetry::{LoggedTexts, Recurrence};

/// A backend.
#[derive(Debug)]
pub struct Backend {
    url: BackendUrl,
    timeout: Duration,
    /// What to answer if it does not.
    pub on_failure: OnFailure,
    /// Whether it gets a copy of each new recall.
    pub copy_recalls: bool,
    slots: Slots,
    pub(super) breaker: Breaker,
    client: BackendClient,
    logged: Mutex<LoggedTexts>,
    missed_copies: Recurrence,
    metrics: Arc<UpstreamMetrics>,
    tasks: TaskTracker,
}

impl Backend {
    /// None if `config` has no URL.
    pub(super) fn new(
        config: &Config,
        metrics: &Arc<UpstreamMetrics>,
        tasks: &TaskTracker,
    ) -> Option<Self> {
        let url = config.url.clone()?;
        let backend = Self {
            timeout: *config.timeout,
            on_failure: config.on_failure,
            copy_recalls: config.copy_recalls,
            slots: Slots::new(config.max_in_flight),
            breaker: Breaker::new(url.without_query()),
            client: BackendClient::new(config, &url),
            logged: Mutex::default(),
            missed_copies: Recurrence::default(),
            metrics: Arc::clone(metrics),
            tasks: tasks.clone(),
            url,
        };
        if let Err(error) = backend.client.check() {
            backend.log(&error, Instant::now());
        }
        Some(backend)
    }

    /// Whether it answers.
    #[must_use]
    pub fn health(&self) -> BackendHealth {
        self.breaker.health()
    }

    /// Makes the request for a callback. Memory for `reserved` bytes is reserved already.
    ///
    /// # Errors
    /// Fails if the query is too long to follow that of the backend's URL.
    pub fn outgoing(
        &self,
        query: &str,
        received: ReceivedHeaders,
        body: Bytes,
        reserved: usize,
        reserve: Reserve,
    ) -> Result<Outgoing, UpstreamError> {
        let uri = self
            .url
            .with_query(query)
            .ok_or(UpstreamError::QueryTooLong)?;
        let ReceivedHeaders {
            mut headers,
            peer,
            is_proxy,
        } = received;
        headers::to_backend(&mut headers, peer, is_proxy);
        Ok(Outgoing::new(uri, headers, body, reserved, reserve))
    }

    /// Hands a callback on, and returns the backend's answer.
    ///
    /// # Errors
    /// Returns why there is no answer.
    pub async fn exchange(
        self: &Arc<Self>,
        command: &'static str,
        sender: Sender,
        outgoing: Result<Outgoing, UpstreamError>,
    ) -> Result<Response<Bytes>, UpstreamError> {
        // Counts also if this future is dropped because the client has disconnected.
        let mut count = RequestCount::new(&self.metrics, command);
        let answer = match self.begin(sender, outgoing) {
            Ok((Permission::Probe, outgoing, slot)) => {
                let backend = Arc::clone(self);
                self.tasks.spawn(async move {
                    drop(backend.run(sender, Permission::Probe, outgoing, slot).await);
                });
                Err(UpstreamError::Down)
            }
            Ok((permission, outgoing, slot)) => self.run(sender, permission, outgoing, slot).await,
            Err(error) => {
                // The breaker logs that the backend is down.
                if error != UpstreamError::Down {
                    self.log(&error, Instant::now());
                }
                Err(error)
            }
        };
        count.outcome = UpstreamMetrics::outcome(&answer);
        answer
    }

    /// Sends a copy of a recall. Returns at once; what becomes of it is only counted and logged.
    pub fn copy(self: &Arc<Self>, outgoing: Result<Outgoing, UpstreamError>) {
        match self.begin(Sender::Relay, outgoing) {
            Ok((permission, outgoing, slot)) => {
                let backend = Arc::clone(self);
                self.tasks.spawn(async move {
                    let answer = backend.run(Sender::Relay, permission, outgoing, slot).await;
                    backend.copied(&answer);
                });
            }
            Err(error) => self.copied(&Err::<(), _>(error)),
        }
    }

    /// Counts a copy, and logs if it failed.
    fn copied<T>(&self, answer: &Result<T, UpstreamError>) {
        self.metrics.copy(UpstreamMetrics::outcome(answer));
        if let Err(error) = answer
            && let Some((lasted, times)) = self.missed_copies.occurred(Instant::now())
        {
            warn!(
                code = "copies_missed", url = self.url.without_query(), reason = %error, times,
                seconds = lasted.as_secs(),
                "copies of recalls to the backend failed (upstream.copy_recalls): it may lack these recalls, because \
                 copies are not sent again; the relay's own events are not affected; make the backend faster, or \
                 repair it"
            );
        }
    }

    /// Decides whether a callback is handed on at all.
    fn begin(
        &self,
        sender: Sender,
        outgoing: Result<Outgoing, UpstreamError>,
    ) -> Result<(Permission, Outgoing, ExchangeSlot), UpstreamError> {
        let outgoing = outgoing?;
        let slot = self.slots.take(sender)?;
        let is_signed = sender != Sender::Unknown;
        match self.breaker.ask(is_signed, Instant::now()) {
            Permission::Refused => Err(UpstreamError::Down),
            permission => Ok((permission, outgoing, slot)),
        }
    }

    async fn run(
        &self,
        sender: Sender,
        permission: Permission,
        outgoing: Outgoing,
        _slot: ExchangeSlot,
    ) -> Result<Response<Bytes>, UpstreamError> {
        let began = Instant::now();
        let exchange = timeout(self.timeout, self.client.send(outgoing)).await;
        let answer = exchange.unwrap_or(Err(UpstreamError::Late));
        let now = Instant::now();
        self.metrics.took(now.duration_since(began).as_secs_f64());
        match &answer {
            Ok(_) => self
                .breaker
                .succeeded(permission != Permission::Exchange, now),
            Err(error) => {
                if Self::is_failure(sender, error) {
                    self.breaker.failed(&error.to_string(), now);
                }
                // Of a copy, the log says more.
                if sender != Sender::Relay {
                    self.log(error, now);
                }
            }
        }
        answer
    }

    /// Whether an error counts as a failure for the breaker: whether the vendor's callbacks would fail, too.
    const fn is_failure(sender: Sender, error: &UpstreamError) -> bool {
        match sender {
            // A client that cannot sign must not affect the callbacks of others.
            Sender::Unknown => false,
            // Nobody waits for a copy: the backend may be slow to handle recalls, and answer other commands in time.
            Sender::Relay => matches!(error, UpstreamError::Unreachable(_)),
            Sender::Vendor => matches!(
                error,
                UpstreamError::Unreachable(_) | UpstreamError::Late | UpstreamError::BadAnswer(_)
            ),
        }
    }

    fn log(&self, error: &UpstreamError, now: Instant) {
        let reason = error.to_string();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_due(&reason, now) {
            error!(
                code = "upstream_failed",
                url = self.url.without_query(),
                reason,
                "backend did not answer a callback; for the next hour, failures for this reason are only counted \
                 (recall_upstream_requests_total); check the backend and the settings of upstream"
            );
        }
    }
}
