//! Settings of the listener for callbacks.

use std::net::SocketAddr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::listener::Limits;
use crate::setting::{self, Period, ServerTls, Size, Timeout};

/// Settings of the listener for callbacks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address to listen on.
    #[serde(deserialize_with = "setting::address")]
    pub listen: SocketAddr,
    /// The path of the callback URL.
    #[serde(deserialize_with = "path")]
    pub path: String,
    /// The largest accepted body; a larger one is answered 413.
    pub max_body_bytes: Size,
    /// Total bytes of all callbacks (query and body, then the event) that are being received or waiting for the disk.
    /// Above it callbacks are refused. A single callback is always allowed. TLS connections without an authenticated
    /// request take another quarter of it at most.
    pub max_buffered_bytes: Size,
    /// Memory for all requests that are not authenticated: query and body, and what is handed on to a backend.
    pub max_unauthenticated_bytes: Size,
    /// Maximum number of open connections. For a further one, a connection without an authenticated request is closed;
    /// if there is none, it waits in the kernel's backlog.
    #[serde(deserialize_with = "setting::number::<_, _, 1, 4_294_967_295>")]
    pub max_connections: usize,
    /// Maximum number of open connections of one IPv4 address or IPv6 /64, other than `auth.trusted_proxies` and
    /// `auth.allowed_sources`; 0 is no limit.
    #[serde(deserialize_with = "setting::number::<_, _, 0, 4_294_967_295>")]
    pub max_connections_per_source: usize,
    /// How long a request's head may take to arrive, and then its body. A slower body is answered 408.
    pub read_timeout: Timeout,
    /// How long a connection may stay open without a request, if it has brought an authenticated one or is a trusted
    /// proxy's. Others: `read_timeout`.
    pub idle_timeout: Timeout,
    /// Whether `auth.trusted_proxies` begin each connection with a header of the PROXY protocol, version 1 or 2.
    #[serde(deserialize_with = "setting::text")]
    pub proxy_protocol: bool,
    /// The certificates of the listener; without them it speaks plain HTTP.
    pub tls: ServerTls,
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
            max_unauthenticated_bytes: Size(1 << 20),
            max_connections: 1024,
            max_connections_per_source: 0,
            read_timeout: Timeout::from_secs(10),
            idle_timeout: Timeout::from_secs(75),
            proxy_protocol: false,
            tls: ServerTls::default(),
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
            connections_per_source: self.max_connections_per_source,
            read_timeout: self.read_timeout,
            idle_timeout: self.idle_timeout,
        }
    }
}

/// Reads a path that the target of a request can have; the two are compared byte for byte.
fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let path: String = setting::text(deserializer)?;
    let problem = if !path.starts_with('/') || path.contains(['?', '#']) {
        "must be a path only, such as `/callback`: begin it with `/`, and leave out scheme, host, `?` and `#`"
    } else if !is_path(&path) {
        "has a character that no URL's path has; percent-encode it, a space as `%20`"
    } else if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        "has a segment `.` or `..`, which clients leave out of a request"
    } else {
        return Ok(path);
    };
    Err(D::Error::custom(problem))
}

/// Whether text has only what a path may have (RFC 3986, section 3.3).
fn is_path(text: &str) -> bool {
    let is_hex = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&byte))
        && text
            .split('%')
            .skip(1)
            .all(|rest| rest.get(..2).is_some_and(is_hex))
}

#[cfg(test)]
mod tests {
    use hyper::Uri;

    use super::*;

    #[test]
    fn a_path_is_one_that_a_request_can_have() {
        let read = |path: &str| {
            let json = serde_json::json!({ "path": path });
            serde_json::from_value::<Config>(json).map(|config| config.path)
        };
        for path in [
            "/",
            "/im/callback",
            "//x/",
            "/a%2Fb",
            "/~a.b;c=d,e:@!$&'()*+",
            "/...",
            "/.well-known",
        ] {
            assert_eq!(read(path).unwrap(), path);
            // hyper reads it as the same path.
            assert_eq!(path.parse::<Uri>().unwrap().path(), path);
        }
        for path in [
            "callback",
            "https://relay.example/callback",
            "relay.example/callback",
            "/callback?from=im",
            "/#",
            "/a b",
            "/é",
            "/a\"b",
            "/a\\b",
            "/a%2",
            "/a%zz",
            "/a/../b",
            "/a/.",
            "/{id}",
        ] {
            assert!(read(path).is_err(), "{path}");
        }
    }
}
