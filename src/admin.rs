//! The listener for operators: serves health, readiness, metrics, and the status as JSON and as a page.
//!
//! `/readyz` answers 200 while a callback can be stored durably, whatever the state of the brokers: taking a relay
//! out of service because a broker is down would lose callbacks. Its body reports the state of the sinks. Nothing can be
//! changed here.

mod collector;
mod exposition;
mod host;
mod page;
mod process;
mod readiness;
mod status;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use collector::CollectedMetrics;
pub use process::ProcessMetrics;
pub use status::{SettingInForce, SettingsInForce};

use self::exposition::ExpositionFormat;
use self::readiness::Readiness;
use self::status::History;
use crate::forwarder::SinkHandle;
use crate::receiver::{AnswerMetrics, Handshakes, Limits, Peer, Service, UnacceptedRecalls};
use crate::setting::{self, Timeout};
use crate::spool::Spool;
use crate::telemetry::RecentProblems;
use crate::upstream::Upstream;

/// Settings of the listener for operators.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address to listen on; it must not be public.
    #[serde(deserialize_with = "setting::address")]
    pub listen: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
        }
    }
}

impl Config {
    /// The limits of each connection. The clients are a few probes and a scraper.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits {
            connections: 64,
            connections_per_source: 0,
            read_timeout: Timeout::from_secs(10),
            // No request is authenticated here, so no connection earns more.
            idle_timeout: Timeout::from_secs(10),
        }
    }
}

/// The parts of the relay whose state is served.
#[derive(Debug)]
pub struct Observed {
    /// The spool.
    pub spool: Spool,
    /// The sinks.
    pub sinks: Vec<SinkHandle>,
    /// What became of callbacks.
    pub answers: AnswerMetrics,
    /// The recalls that were not accepted.
    pub unaccepted: Arc<UnacceptedRecalls>,
    /// The certificate of the listener for callbacks.
    pub handshakes: Arc<Handshakes>,
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// The latest warnings and errors.
    pub problems: RecentProblems,
    /// The settings in force.
    pub settings: SettingsInForce,
}

/// The service behind the listener.
#[derive(Debug)]
pub struct Admin {
    observed: Observed,
    history: History,
    started: SystemTime,
    registry: Registry,
    /// Limits concurrent scrapes: each one reads the disk, and continues even if its client disconnects.
    scrapes: Arc<Semaphore>,
    /// Limits concurrent answers of `/status`. Apart from `scrapes`, so that a scrape that hangs does not block them.
    statuses: Arc<Semaphore>,
    stopping: AtomicBool,
}

/// The prefix of the names of the relay's own metrics.
pub const PREFIX: &str = "recall";

/// The maximum number of concurrent scrapes, and of concurrent answers of `/status`.
const SCRAPES: usize = 8;

/// The answer to a request from the loopback whose `Host` is not the loopback.
const FOREIGN_HOST: &str = "a request from this machine must name it in Host: use localhost or 127.0.0.1 in the URL; a \
                            proxy on this machine must set Host to localhost\n";

impl Admin {
    /// Serves the state of these parts, and registers their metrics.
    #[must_use]
    pub fn new(observed: Observed, mut registry: Registry) -> Self {
        let own = registry.sub_registry_with_prefix(PREFIX);
        let Observed { spool, sinks, .. } = &observed;
        own.register_collector(Box::new(CollectedMetrics::new(
            spool.clone(),
            sinks.clone(),
        )));
        own.register_with_unit(
            "spool_commit",
            "Time that commits of events take, the sync included",
            Unit::Seconds,
            spool.commit_seconds().clone(),
        );
        own.register(
            "build",
            "Version of the relay",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        Self {
            observed,
            history: History::default(),
            started: SystemTime::now(),
            registry,
            scrapes: Arc::new(Semaphore::new(SCRAPES)),
            statuses: Arc::new(Semaphore::new(SCRAPES)),
            stopping: AtomicBool::new(false),
        }
    }

    /// Collects the history that the status shows, for as long as the relay runs.
    pub async fn watch(&self) -> Infallible {
        self.history.watch(&self.observed).await
    }

    /// Makes `/readyz` report that the relay is not ready, because it is stopping.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Answers a request of this peer.
    pub async fn answer<B: Send>(
        self: Arc<Self>,
        request: Request<B>,
        peer: SocketAddr,
    ) -> Response<Full<Bytes>> {
        if !host::is_allowed(&request, peer) {
            return text(StatusCode::FORBIDDEN, FOREIGN_HOST);
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = text(
                StatusCode::METHOD_NOT_ALLOWED,
                "method is not GET or HEAD\n",
            );
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "alive\n"),
            "/readyz" => self.readiness(),
            "/metrics" => self.metrics(request.headers()).await,
            "/status" => self.status().await,
            "/" => page::answer(),
            _ => text(
                StatusCode::NOT_FOUND,
                "no such path; use /, /status, /livez, /readyz or /metrics\n",
            ),
        }
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        let body = Readiness::of(&self.observed, self.is_stopping());
        let status = if body.ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        respond(status, "application/json", body)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    async fn status(self: Arc<Self>) -> Response<Full<Bytes>> {
        let Ok(permit) = Arc::clone(&self.statuses).try_acquire_owned() else {
            return too_many();
        };
        let json = in_background(permit, move || {
            status::json(
                &self.observed,
                &self.history,
                self.started,
                self.is_stopping(),
            )
        });
        match json.await {
            Some(json) => respond_fresh(StatusCode::OK, "application/json", json),
            None => not_encoded(),
        }
    }

    async fn metrics(self: Arc<Self>, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let Ok(permit) = Arc::clone(&self.scrapes).try_acquire_owned() else {
            return too_many();
        };
        let format = ExpositionFormat::negotiate(headers);
        let encoded = in_background(permit, move || format.encode(&self.registry));
        match encoded.await {
            Some(Ok(body)) => respond(StatusCode::OK, format.content_type(), body.into_bytes()),
            _ => not_encoded(),
        }
    }
}

/// Runs `encode` on a blocking thread, even if nobody waits for it. None if the runtime is shutting down.
async fn in_background<T: Send + 'static>(
    permit: OwnedSemaphorePermit,
    encode: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let encoded = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        encode()
    });
    encoded.await.ok()
}

impl Service for Arc<Admin> {
    async fn answer(&self, request: Request<Incoming>, peer: Arc<Peer>) -> Response<Full<Bytes>> {
        Admin::answer(Arc::clone(self), request, peer.address()).await
    }
}

fn too_many() -> Response<Full<Bytes>> {
    text(
        StatusCode::SERVICE_UNAVAILABLE,
        "too many scrapes at once; retry later\n",
    )
}

fn not_encoded() -> Response<Full<Bytes>> {
    text(
        StatusCode::INTERNAL_SERVER_ERROR,
        "metrics could not be encoded\n",
    )
}

/// An answer for browsers, which must not keep it or guess its type.
fn respond_fresh(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = respond(status, content_type, body);
    let headers = [
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    response
        .headers_mut()
        .extend(headers.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body)
}

fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
