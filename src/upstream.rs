//! The upstream: the application's backend, which has answered the vendor's callbacks so far. Every command that is
//! not a recall is handed on to it, and its answer goes back unchanged.
//!
//! Promises:
//! - recalls do not depend on it: a copy of a recall is sent after the recall is durable, and never waited for;
//! - everything is bounded: the time and the number of exchanges, the size of an answer;
//! - after a few failures in a row, callbacks no longer wait for the backend: they fail at once, and one a second is
//!   also sent as a probe.

mod backend;
mod breaker;
mod client;
mod config;
mod error;
mod headers;
mod metrics;
mod outgoing;
mod slots;

use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use tokio::time::{sleep, timeout_at};
use tokio_util::task::TaskTracker;

pub use backend::Backend;
pub use breaker::BackendHealth;
pub use config::{BackendUrl, Config, OnFailure};
pub use error::UpstreamError;
use metrics::{Up, UpstreamMetrics};
pub use outgoing::{Outgoing, ReceivedHeaders, Reserve};
pub use slots::Sender;

/// The backend in use.
type Current = Arc<RwLock<Option<Arc<Backend>>>>;

/// The upstream: its backend, if there is one, can be replaced while the relay runs.
#[derive(Debug)]
pub struct Upstream {
    backend: Current,
    metrics: Arc<UpstreamMetrics>,
    tasks: TaskTracker,
}

impl Upstream {
    /// An upstream without a backend. Registers its metrics.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let backend = Current::default();
        registry.register_collector(Box::new(Up(Arc::clone(&backend))));
        Self {
            backend,
            metrics: Arc::new(UpstreamMetrics::register(registry)),
            tasks: TaskTracker::new(),
        }
    }

    /// From now on hands callbacks on as `config` says. Reads certificates, so it blocks.
    pub fn set(&self, config: Option<&Config>) {
        let backend = config.and_then(|config| Backend::new(config, &self.metrics, &self.tasks));
        if backend.is_some() {
            self.metrics.init();
        }
        *self.backend.write().unwrap_or_else(PoisonError::into_inner) = backend.map(Arc::new);
    }

    /// The backend, if one is configured.
    #[must_use]
    pub fn backend(&self) -> Option<Arc<Backend>> {
        self.backend
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Logs again that the backend is down if it lasts, for as long as the relay runs.
    pub async fn watch(&self) -> Infallible {
        loop {
            sleep(Duration::from_secs(1)).await;
            if let Some(backend) = self.backend() {
                backend.breaker.remind(Instant::now());
            }
        }
    }

    /// Waits for the exchanges that nobody else waits for.
    pub async fn drain(&self, deadline: tokio::time::Instant) {
        self.tasks.close();
        let _ = timeout_at(deadline, self.tasks.wait()).await;
    }
}
