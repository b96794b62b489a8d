//! The open connections of a listener, and which of them is closed when there are too many.
//!
//! A client that brings no authenticated request must not keep the vendor out. So if there is no place for a new
//! connection, the one that has been idle longest is shed. Connections that brought an authenticated request, and those
//! of trusted proxies, are never shed. If only such connections are open, new ones wait in the kernel's backlog.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::telemetry::Recurrence;

/// The order of a connection that is never shed.
const PROTECTED: u64 = u64::MAX;

/// How many connections may be ending because they were shed, beside those that are open: accepting another one need
/// not wait for them.
const ENDING: usize = 64;

/// The metrics of a listener's connections.
#[derive(Debug, Clone, Default)]
pub(super) struct ConnectionMetrics {
    pub(super) open: Gauge,
    shed: Counter,
    refused: Counter,
}

impl ConnectionMetrics {
    /// Registers the metrics.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "http_connections",
            "Open connections of the listener for callbacks (`http.max_connections`)",
            self.open.clone(),
        );
        registry.register(
            "http_connections_shed",
            "Connections without an authenticated request that were closed because `http.max_connections` were open",
            self.shed.clone(),
        );
        registry.register(
            "http_connections_refused",
            "Connections that were closed because their source had `http.max_connections_per_source`",
            self.refused.clone(),
        );
    }
}

/// The open connections of a listener.
#[derive(Debug)]
pub(super) struct Connections {
    /// The setting that limits them, for the log.
    setting: &'static str,
    limit: usize,
    per_source: usize,
    /// For the connections and those that were shed and have not ended yet.
    permits: Arc<Semaphore>,
    ended: Notify,
    metrics: ConnectionMetrics,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many are open and not shed.
    open: usize,
    /// The order of the next connection to become idle.
    next: u64,
    /// The connections that may be shed, by how long they have been idle, longest first.
    idle: BTreeMap<u64, CancellationToken>,
    /// How many connections each source has, if that is limited.
    sources: HashMap<IpAddr, usize>,
    full: Recurrence,
    refused: Recurrence,
}

impl Connections {
    /// At most `limit` connections, the value of `setting`; at most `per_source` of each source, unless that is 0.
    pub(super) fn new(
        setting: &'static str,
        limit: usize,
        per_source: usize,
        metrics: ConnectionMetrics,
    ) -> Arc<Self> {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS - ENDING);
        Arc::new(Self {
            setting,
            limit,
            per_source,
            permits: Arc::new(Semaphore::new(limit + ENDING)),
            ended: Notify::new(),
            metrics,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a new connection can be accepted: there is a free place, or one that can be made free. Until then,
    /// new connections stay in the kernel's backlog. Cancel safe.
    pub(super) async fn acceptable(&self) {
        while self.is_full(&mut self.state()) {
            self.ended.notified().await;
        }
    }

    fn is_full(&self, state: &mut State) -> bool {
        let is_full = state.open >= self.limit && state.idle.is_empty();
        if is_full {
            self.log_full(state, state.open);
        }
        is_full
    }

    /// A place for an accepted connection. If there is none, sheds the connection that has been idle longest. Does not
    /// wait until that has ended, unless many others have not ended either.
    pub(super) async fn admit(self: &Arc<Self>) -> Option<Place> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        let shed = CancellationToken::new();
        let order = loop {
            {
                let mut state = self.state();
                if state.open < self.limit || self.shed(&mut state) {
                    break state.enlist(shed.clone());
                }
            }
            // The one that could be shed a moment ago has authenticated itself since.
            self.ended.notified().await;
        };
        self.metrics.open.inc();
        Some(Place {
            connections: Arc::clone(self),
            shed,
            order: AtomicU64::new(order),
            source: Mutex::default(),
            _permit: permit,
        })
    }

    /// Sheds the connection that has been idle longest, if there is one.
    fn shed(&self, state: &mut State) -> bool {
        let protected = state.open.saturating_sub(state.idle.len());
        let Some((_, longest)) = state.idle.pop_first() else {
            return false;
        };
        longest.cancel();
        state.open -= 1;
        self.metrics.shed.inc();
        self.log_full(state, protected);
        true
    }

    fn log_full(&self, state: &mut State, authenticated: usize) {
        let Some((lasted, times)) = state.full.occurred(Instant::now()) else {
            return;
        };
        let (setting, limit) = (self.setting, self.limit);
        warn!(
            code = "connections_full",
            setting,
            limit,
            authenticated,
            times,
            seconds = lasted.as_secs(),
            "all connections are in use; for each new one, the one without an authenticated request that has been idle \
             longest is closed, and if there is none, the new one waits; find out who opens them, limit the source \
             (http.max_connections_per_source), or raise the limit"
        );
    }
}

impl State {
    /// Counts a connection that is idle since now.
    fn enlist(&mut self, shed: CancellationToken) -> u64 {
        self.open += 1;
        let order = self.next;
        self.next += 1;
        self.idle.insert(order, shed);
        order
    }

    /// Takes an idle connection out. False if it is shed.
    fn remove(&mut self, order: u64) -> bool {
        let is_idle = self.idle.remove(&order).is_some();
        if is_idle {
            self.open -= 1;
        }
        is_idle
    }
}

/// The place of an open connection among the others. Dropping it makes the place free.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<Connections>,
    shed: CancellationToken,
    /// Its key in `State::idle`, or [`PROTECTED`]. Changed only while the state is locked.
    order: AtomicU64,
    /// The source that it counts for.
    source: Mutex<Option<IpAddr>>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// Waits until the connection must be closed, because another one needs its place.
    pub(super) async fn shed(&self) {
        self.shed.cancelled().await;
        if self.is_protected() {
            pending::<()>().await;
        }
    }

    /// From now on, the connection is not shed.
    pub(super) fn protect(&self) {
        if self.is_protected() {
            return;
        }
        let mut state = self.connections.state();
        let order = self.order.swap(PROTECTED, Ordering::Relaxed);
        if !state.remove(order) {
            // It was chosen a moment ago: another one must go in its place.
            self.connections.shed(&mut state);
        }
        state.open += 1;
    }

    /// Whether the connection is not shed.
    pub(super) fn is_protected(&self) -> bool {
        self.order.load(Ordering::Relaxed) == PROTECTED
    }

    /// The connection has been idle only since now. Bytes of a request that is not complete do not count, so sending
    /// slowly keeps no place.
    pub(super) fn idle_again(&self) {
        if self.is_protected() {
            return;
        }
        let mut state = self.connections.state();
        if state.remove(self.order.load(Ordering::Relaxed)) {
            let order = state.enlist(self.shed.clone());
            self.order.store(order, Ordering::Relaxed);
        }
    }

    /// Counts the connection for its source; false if that has too many.
    pub(super) fn count_for(&self, address: IpAddr) -> bool {
        let connections = &*self.connections;
        if connections.per_source == 0 {
            return true;
        }
        let source = source(address);
        let mut state = connections.state();
        let count = state.sources.entry(source).or_default();
        if *count < connections.per_source {
            *count += 1;
            drop(state);
            *self.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
            return true;
        }
        connections.metrics.refused.inc();
        if let Some((lasted, refused)) = state.refused.occurred(Instant::now()) {
            let limit = connections.per_source;
            warn!(
                code = "source_connections_full", %source, limit, refused, seconds = lasted.as_secs(),
                "connections were closed because their source has http.max_connections_per_source open; if it is the \
                 vendor's or a proxy's, add it to auth.allowed_sources or auth.trusted_proxies, or raise the limit"
            );
        }
        false
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.connections.state();
        if self.is_protected() {
            state.open -= 1;
        } else {
            state.remove(self.order.load(Ordering::Relaxed));
        }
        let source = self
            .source
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = source
            && let Some(count) = state.sources.get_mut(source)
        {
            *count -= 1;
            if *count == 0 {
                state.sources.remove(source);
            }
        }
        drop(state);
        self.connections.ended.notify_one();
        self.connections.metrics.open.dec();
    }
}

/// What counts as one source: an IPv4 address, or the /64 that one subscriber has in IPv6.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            Ipv6Addr::from(network).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}
