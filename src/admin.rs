//! The listener for operators: serves health, readiness and metrics.
//!
//! `/readyz` answers 200 while a callback can be stored durably, whatever the state of the brokers: taking a relay
//! out of service because a broker is down would lose callbacks. Its body reports the state of the sinks.

mod collector;
mod exposition;
mod host;
mod process;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

pub use collector::CollectedMetrics;
pub use process::ProcessMetrics;

use self::exposition::ExpositionFormat;
use crate::event::UnixMillis;
use crate::forwarder::{Health, SinkHandle};
use crate::receiver::{Limits, Peer, Service, UnacceptedRecalls};
use crate::setting::{self, Timeout};
use crate::spool::Spool;
use crate::upstream::{self, Upstream};

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

/// The service behind the listener.
#[derive(Debug)]
pub struct Admin {
    spool: Spool,
    sinks: Vec<SinkHandle>,
    unaccepted: Arc<UnacceptedRecalls>,
    upstream: Arc<Upstream>,
    registry: Registry,
    /// Limits concurrent scrapes: each one reads the disk, and continues even if its client disconnects.
    scrapes: Arc<Semaphore>,
    stopping: AtomicBool,
}

/// The prefix of the names of the relay's own metrics.
pub const PREFIX: &str = "recall";

/// The maximum number of concurrent scrapes.
const SCRAPES: usize = 8;

/// The answer to a request from the loopback whose `Host` is not the loopback.
const FOREIGN_HOST: &str = "a request from this machine must name it in Host: use localhost or 127.0.0.1 in the URL; a \
                            proxy on this machine must set Host to localhost\n";

#[derive(Debug, Serialize)]
struct Readiness<'a> {
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    spool: SpoolBody,
    sinks: BTreeMap<&'a str, SinkBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<StateBody>,
    /// By outcome.
    recalls_not_accepted_last_minute: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Serialize)]
struct SpoolBody {
    events: u64,
    used_bytes: u64,
    last_seq: u64,
    unreadable: u64,
    lost: u64,
    /// What this start found to be damaged, and the path of the quarantined file.
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged: Option<String>,
    /// Quarantined files that nobody has removed yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    quarantined: Vec<String>,
}

#[derive(Debug, Serialize)]
struct StateBody {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
}

#[derive(Debug, Serialize)]
struct SinkBody {
    #[serde(flatten)]
    state: StateBody,
    cursor: u64,
    lag: u64,
}

impl Admin {
    /// Serves the state of this spool and these sinks, and registers their metrics.
    #[must_use]
    pub fn new(
        spool: Spool,
        sinks: Vec<SinkHandle>,
        unaccepted: Arc<UnacceptedRecalls>,
        upstream: Arc<Upstream>,
        mut registry: Registry,
    ) -> Self {
        let own = registry.sub_registry_with_prefix(PREFIX);
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
            spool,
            sinks,
            unaccepted,
            upstream,
            registry,
            scrapes: Arc::new(Semaphore::new(SCRAPES)),
            stopping: AtomicBool::new(false),
        }
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
            "/" => text(StatusCode::OK, "recall-relay: /livez /readyz /metrics\n"),
            _ => text(
                StatusCode::NOT_FOUND,
                "no such path; use /livez, /readyz or /metrics\n",
            ),
        }
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        // Only a stop or the spool makes the relay unready, never a sink: see the module's documentation.
        let status = self.spool.status();
        let reason = if self.stopping.load(Ordering::Acquire) {
            Some("relay is stopping".to_owned())
        } else {
            status.refusing.as_ref().map(ToString::to_string)
        };
        let body = Readiness {
            ready: reason.is_none(),
            reason,
            spool: SpoolBody {
                events: status.rows(),
                used_bytes: status.used_bytes,
                last_seq: status.last.0,
                unreadable: self.spool.unreadable(),
                lost: self.spool.lost(),
                damaged: self
                    .spool
                    .report()
                    .quarantined
                    .as_ref()
                    .map(ToString::to_string),
                quarantined: self
                    .spool
                    .quarantined()
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect(),
            },
            sinks: self
                .sinks
                .iter()
                .map(|sink| (sink.state.sink(), SinkBody::of(sink, status.last.0)))
                .collect(),
            upstream: (self.upstream.backend()).map(|backend| match backend.health() {
                upstream::BackendHealth::Up => StateBody::of("up"),
                upstream::BackendHealth::Down { reason, since } => StateBody::down(reason, since),
            }),
            recalls_not_accepted_last_minute: self.unaccepted.last_minute(),
        };
        let status = if body.ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        respond(status, "application/json", body)
    }

    async fn metrics(self: Arc<Self>, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let Ok(scrape) = Arc::clone(&self.scrapes).try_acquire_owned() else {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many scrapes at once; retry later\n",
            );
        };
        let format = ExpositionFormat::negotiate(headers);
        let encoded = tokio::task::spawn_blocking(move || {
            let _scrape = scrape;
            format.encode(&self.registry)
        });
        match encoded.await {
            Ok(Ok(body)) => respond(StatusCode::OK, format.content_type(), body.into_bytes()),
            _ => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "metrics could not be encoded\n",
            ),
        }
    }
}

impl Service for Arc<Admin> {
    async fn answer(&self, request: Request<Incoming>, peer: Arc<Peer>) -> Response<Full<Bytes>> {
        Admin::answer(Arc::clone(self), request, peer.address()).await
    }
}

impl StateBody {
    const fn of(state: &'static str) -> Self {
        Self {
            state,
            reason: None,
            since: None,
        }
    }

    fn down(reason: String, since: SystemTime) -> Self {
        Self {
            state: "down",
            reason: Some(reason),
            since: UnixMillis::of(since).map(|since| since.to_string()),
        }
    }
}

impl SinkBody {
    fn of(sink: &SinkHandle, last: u64) -> Self {
        let cursor = sink.cursor.position().0;
        let state = match sink.state.health() {
            Health::Starting => StateBody::of("starting"),
            Health::Up => StateBody::of("up"),
            Health::Down { reason, since } => StateBody::down(reason, since),
        };
        Self {
            state,
            cursor,
            lag: last.saturating_sub(cursor),
        }
    }
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
