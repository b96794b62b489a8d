//! The receiver: what the vendor calls.
//!
//! Promises:
//! - `OK`/0 is answered to a recall only after its event is durable;
//! - every request whose head could be read gets an answer in the vendor's shape;
//! - nothing from outside waits or grows without a bound: connections, bodies, and the time that each
//!   step may take are limited.
//!
//! It knows nothing of brokers: whether they are there does not change an answer.

mod answer;
mod auth;
mod callback_service;
mod connection_timer;
mod durability;
mod listener;
mod metrics;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use auth::{Auth, Config as AuthConfig};
pub use callback_service::CallbackService;
pub use durability::{Durability, Kept, NotKept};
pub use listener::{BindError, Limits, Listener};
pub use metrics::Metrics;

use crate::setting::{self, Period, Size, Timeout};

/// Settings of the listener for callbacks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address to listen on.
    #[serde(deserialize_with = "setting::text")]
    pub listen: SocketAddr,
    /// The path of the callback URL.
    pub path: String,
    /// The largest body; a larger one is answered 413.
    pub max_body_bytes: Size,
    /// Bytes of all callbacks (query and body, and then the event) that are being received or wait for the disk;
    /// beyond it callbacks are refused. Holds at least one.
    pub max_buffered_bytes: Size,
    /// Connections open at once; more wait in the kernel's backlog.
    #[serde(deserialize_with = "setting::text")]
    pub max_connections: usize,
    /// How long a request's head may take to arrive, and then its body; a slower body is answered 408.
    pub read_timeout: Timeout,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Timeout,
    /// At a stop: how long callbacks are still taken after `/readyz` says 503.
    pub stop_delay: Period,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            path: "/".to_owned(),
            max_body_bytes: Size(256 << 10),
            max_buffered_bytes: Size(64 << 20),
            max_connections: 1024,
            read_timeout: Timeout::from_secs(10),
            idle_timeout: Timeout::from_secs(75),
            stop_delay: Period(std::time::Duration::ZERO),
        }
    }
}

impl Config {
    /// What every connection is held to.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits {
            connections: self.max_connections,
            read_timeout: self.read_timeout,
            idle_timeout: self.idle_timeout,
        }
    }
}
