//! Settings of the listener for callbacks.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::limits::Limits;
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
    /// The largest accepted body; a larger one is answered 413.
    pub max_body_bytes: Size,
    /// Total bytes of all callbacks (query and body, then the event) that are being received or waiting for the disk.
    /// Above it callbacks are refused. A single callback is always allowed.
    pub max_buffered_bytes: Size,
    /// Maximum number of open connections; further ones wait in the kernel's backlog.
    #[serde(deserialize_with = "setting::text")]
    pub max_connections: usize,
    /// How long a request's head may take to arrive, and then its body. A slower body is answered 408.
    pub read_timeout: Timeout,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Timeout,
    /// On shutdown: how long callbacks are still accepted after `/readyz` returns 503.
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
    /// The limits of each connection.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits {
            connections: self.max_connections,
            read_timeout: self.read_timeout,
            idle_timeout: self.idle_timeout,
        }
    }
}
