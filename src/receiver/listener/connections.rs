//! The open connections of a listener, and which of them is closed when there are too many.
//!
//! A client that brings no authenticated request must not keep the vendor out. So if there is no slot for a new
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

use crate::receiver::budget::Budget;
use crate::telemetry::Recurrence;

/// The order of a connection that is never shed.
const PROTECTED: u64 = u64::MAX;

/// How many shed connections may still be closing, in addition to the limit, so that accepting another one does not
/// wait for them.
const CLOSING: usize = 16;

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
            "Open connections of the listener for callbacks (`http.max_connections`), and up to 16 that are being closed",
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
    full: Recurrence,
    refused: Recurrence,
    metrics: ConnectionMetrics,
    state: Mutex<OpenConnections>,
}

#[derive(Debug, Default)]
struct OpenConnections {
    /// How many are open and not shed.
    open: usize,
    /// The order of the next connection to become idle.
    next: u64,
    /// The connections that may be shed, by how long they have been idle, longest first.
    idle: BTreeMap<u64, CancellationToken>,
    /// How many connections each source has, if that is limited.
    sources: HashMap<IpAddr, usize>,
}

impl Connections {
    /// At most `limit` connections, the value of `setting`; at most `per_source` of each source, unless that is 0.
    pub(super) fn new(
        setting: &'static str,
        limit: usize,
        per_source: usize,
        metrics: ConnectionMetrics,
    ) -> Arc<Self> {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS - CLOSING);
        Arc::new(Self {
            setting,
            limit,
            per_source,
            permits: Arc::new(Semaphore::new(limit + CLOSING)),
            ended: Notify::new(),
            full: Recurrence::default(),
            refused: Recurrence::default(),
            metrics,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, OpenConnections> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for an accepted connection. If none is free, sheds the connection that has been idle longest; does not
    /// wait until that has ended, unless many others have not ended either. If none can be shed, waits.
    pub(super) async fn admit(self: &Arc<Self>) -> Option<ConnectionSlot> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        let shed = CancellationToken::new();
        let order = loop {
            {
                let mut state = self.state();
                if state.open < self.limit {
                    break state.enlist(shed.clone());
                }
                self.log_full(&state);
                if state.shed() {
                    break state.enlist(shed.clone());
                }
            }
            self.ended.notified().await;
        };
        self.metrics.open.inc();
        Some(ConnectionSlot {
            connections: Arc::clone(self),
            shed,
            order: AtomicU64::new(order),
            source: Mutex::default(),
            memory: Mutex::default(),
            _permit: permit,
        })
    }

    fn log_full(&self, state: &OpenConnections) {
        let Some((lasted, times)) = self.full.occurred(Instant::now()) else {
            return;
        };
        let (setting, limit) = (self.setting, self.limit);
        let authenticated = state.open - state.idle.len();
        warn!(
            code = "connections_full",
            setting,
            limit,
            authenticated,
            times,
            seconds = lasted.as_secs(),
            "all connections are in use: each new one replaces the longest-idle connection without an authenticated \
             request, or waits if there is none; find out who opens them; for http.max_connections, limit each source \
             (http.max_connections_per_source), or raise it"
        );
    }
}

impl OpenConnections {
    /// Sheds the connection that has been idle longest, if there is one.
    fn shed(&mut self) -> bool {
        let Some((_, longest)) = self.idle.pop_first() else {
            return false;
        };
        self.open -= 1;
        longest.cancel();
        true
    }

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

/// The slot of an open connection. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    connections: Arc<Connections>,
    shed: CancellationToken,
    /// Its key in `OpenConnections::idle`, or [`PROTECTED`]. Changed only while the state is locked.
    order: AtomicU64,
    /// The source that it counts for.
    source: Mutex<Option<IpAddr>>,
    memory: Mutex<Option<OwnedSemaphorePermit>>,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionSlot {
    /// Waits until the connection must be closed, because another one needs its slot.
    pub(super) async fn shed(&self) {
        self.shed.cancelled().await;
        if self.is_protected() {
            pending::<()>().await;
        }
        self.connections.metrics.shed.inc();
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
            state.shed();
        }
        state.open += 1;
        drop(state);
        *self.memory() = None;
    }

    /// Holds memory until the connection is protected or has ended. If there is none, sheds the connection that has
    /// been idle longest, and waits.
    pub(super) async fn hold_memory(&self, budget: &Budget, bytes: usize) {
        if self.is_protected() {
            return;
        }
        let memory = if let Ok(memory) = budget.acquire(bytes) {
            Some(memory)
        } else {
            self.connections.state().shed();
            budget.wait(bytes).await
        };
        *self.memory() = memory;
    }

    fn memory(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the connection is not shed.
    pub(super) fn is_protected(&self) -> bool {
        self.order.load(Ordering::Relaxed) == PROTECTED
    }

    /// The connection has been idle only since now. Bytes of a request that is not complete do not count, so sending
    /// slowly keeps no slot.
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
        if let Some((lasted, refused)) = connections.refused.occurred(Instant::now()) {
            let limit = connections.per_source;
            warn!(
                code = "source_connections_full", %source, limit, refused, seconds = lasted.as_secs(),
                "connections were closed because their source has http.max_connections_per_source open; if it is the \
                 vendor's or a proxy's, add it to auth.allowed_sources or auth.trusted_proxies, or raise the limit; if \
                 not, there is nothing to do"
            );
        }
        false
    }
}

impl Drop for ConnectionSlot {
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::setting::Size;

    fn connections(limit: usize, per_source: usize) -> Arc<Connections> {
        Connections::new("limit", limit, per_source, ConnectionMetrics::default())
    }

    fn admit(connections: &Arc<Connections>) -> Option<Arc<ConnectionSlot>> {
        connections.admit().now_or_never().flatten().map(Arc::new)
    }

    fn is_shed(slot: &ConnectionSlot) -> bool {
        slot.shed().now_or_never().is_some()
    }

    fn open(connections: &Connections) -> (usize, usize) {
        let state = connections.state();
        (state.open, state.idle.len())
    }

    #[test]
    fn the_longest_idle_is_shed_unless_it_is_protected() {
        let connections = connections(3, 0);
        let [first, second, third] = [(); 3].map(|()| admit(&connections).unwrap());
        first.protect();
        second.idle_again();
        let fourth = admit(&connections).unwrap();
        assert!(!is_shed(&first) && !is_shed(&second) && is_shed(&third));
        assert_eq!(open(&connections), (3, 2));
        let _fifth = admit(&connections).unwrap();
        assert!(is_shed(&second) && !is_shed(&fourth));
        drop((first, second, third, fourth));
        assert_eq!(open(&connections), (1, 1));
    }

    #[test]
    fn one_that_is_chosen_while_it_authenticates_is_replaced() {
        let connections = connections(2, 0);
        let [first, second] = [(); 2].map(|()| admit(&connections).unwrap());
        let third = admit(&connections).unwrap();
        first.protect();
        assert!(!is_shed(&first) && is_shed(&second) && !is_shed(&third));
        assert_eq!(open(&connections), (2, 1));
        third.protect();
        // Only protected ones are left: the next one waits.
        let mut waiting = Box::pin(connections.admit());
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(!is_shed(&first) && !is_shed(&third));
        drop(second);
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(third);
        let fourth = waiting.now_or_never().flatten().unwrap();
        assert_eq!(open(&connections), (2, 1));
        drop((first, fourth));
        assert_eq!(open(&connections), (0, 0));
    }

    #[test]
    fn shed_connections_are_waited_for_only_if_many_are_closing() {
        let connections = connections(1, 0);
        let mut slots: Vec<_> = (0..=CLOSING)
            .map(|_| admit(&connections).unwrap())
            .collect();
        assert!(admit(&connections).is_none());
        slots.remove(0);
        assert!(admit(&connections).is_some());
    }

    #[test]
    fn memory_is_held_until_the_connection_is_protected_or_has_ended() {
        let connections = connections(9, 0);
        let budget = Budget::new("budget", Size(2 << 10));
        let hold = |slot: &Arc<ConnectionSlot>| {
            let slot = Arc::clone(slot);
            let budget = budget.clone();
            Box::pin(async move { slot.hold_memory(&budget, 1 << 10).await })
        };
        let slots = [(); 4].map(|()| admit(&connections).unwrap());
        assert!(hold(&slots[0]).now_or_never().is_some());
        assert!(hold(&slots[1]).now_or_never().is_some());
        let mut third = hold(&slots[2]);
        assert!(third.as_mut().now_or_never().is_none());
        assert!(is_shed(&slots[0]) && !is_shed(&slots[1]));
        let [first, second, ..] = slots;
        drop(first);
        assert!(third.now_or_never().is_some());
        second.protect();
        assert!(budget.acquire(1 << 10).is_ok());
        assert!(budget.acquire(2 << 10).is_err());
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_network() {
        let connections = connections(99, 1);
        let slots: Vec<_> = (0..9).map(|_| admit(&connections).unwrap()).collect();
        for (slot, address, counted) in [
            (&slots[0], "192.0.2.1", true),
            (&slots[1], "192.0.2.1", false),
            (&slots[2], "::ffff:192.0.2.1", false),
            (&slots[3], "192.0.2.2", true),
            (&slots[4], "2001:db8::1", true),
            (&slots[5], "2001:db8::ffff:0:0:1", false),
            (&slots[6], "2001:db8:0:1::1", true),
        ] {
            assert_eq!(
                slot.count_for(address.parse().unwrap()),
                counted,
                "{address}"
            );
        }
        drop(slots);
        assert!(connections.state().sources.is_empty());
    }
}
