//! The client of a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::connections::ConnectionSlot;

/// The client of a connection, as the service knows it, and what the service has said of it.
#[derive(Debug)]
pub struct Peer {
    address: SocketAddr,
    /// None outside a listener.
    slot: Option<Arc<ConnectionSlot>>,
    body_unread: AtomicBool,
}

impl From<SocketAddr> for Peer {
    /// A client without a connection.
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            slot: None,
            body_unread: AtomicBool::new(false),
        }
    }
}

impl Peer {
    /// The client of a connection.
    pub(super) fn new(address: SocketAddr, slot: Arc<ConnectionSlot>) -> Self {
        Self {
            slot: Some(slot),
            ..Self::from(address)
        }
    }

    /// Its address: that of the TCP peer, or what a trusted proxy told by the PROXY protocol.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// A request of this client was authenticated: its connection is not shed from now on.
    pub fn authenticated(&self) {
        if let Some(slot) = &self.slot {
            slot.protect();
        }
    }

    /// A request is answered before its body was read to the end: the connection cannot serve another one.
    pub fn leave_body_unread(&self) {
        self.body_unread.store(true, Ordering::Relaxed);
    }

    /// A request was answered. Whether the connection may now be idle for `http.idle_timeout`.
    pub(super) fn is_idle_again(&self) -> bool {
        let slot = self.slot.as_ref();
        slot.is_some_and(|slot| {
            slot.idle_again();
            slot.is_protected()
        })
    }

    /// Whether a body was not read to the end.
    pub fn has_unread_body(&self) -> bool {
        self.body_unread.load(Ordering::Relaxed)
    }
}
