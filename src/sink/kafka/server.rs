//! Addresses of bootstrap servers.

use std::net::Ipv6Addr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::setting::List;

/// Reads a list of `host`, `host:port` or `[IPv6]:port`; librdkafka's default port is 9092. librdkafka logs what it
/// cannot read and then has one server less, or none, so whatever it could misread is refused.
pub(super) fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let servers = List::<String>::deserialize(deserializer)?;
    if servers.iter().any(|server| server.contains("://")) {
        let problem = "must be host:port without a scheme; set the protocol with kafka.properties.security.protocol";
        return Err(D::Error::custom(problem));
    }
    if !servers.iter().all(|server| host_and_port(server).is_some()) {
        let problem =
            "must be host:port, such as kafka.example:9092 or [2001:db8::1]:9092, or several";
        return Err(D::Error::custom(problem));
    }
    Ok(servers.to_string())
}

/// librdkafka's default port.
const PORT: u16 = 9092;

/// The host, without the brackets of an IPv6 address, and the port of a bootstrap server; none if it is not one.
#[must_use]
pub fn host_and_port(server: &str) -> Option<(&str, u16)> {
    let (host, rest) = if let Some(bracketed) = server.strip_prefix('[') {
        let (address, rest) = bracketed.split_once(']')?;
        address.parse::<Ipv6Addr>().ok()?;
        (address, rest)
    } else {
        let (host, rest) = server.split_at(server.find(':').unwrap_or(server.len()));
        let in_host = |char: char| char.is_ascii_alphanumeric() || "-._".contains(char);
        if host.is_empty() || !host.chars().all(in_host) {
            return None;
        }
        (host, rest)
    };
    if rest.is_empty() {
        return Some((host, PORT));
    }
    let port = rest.strip_prefix(':')?;
    // `parse` accepts a sign.
    let port = port.parse().ok().filter(|_| !port.starts_with('+'))?;
    (port > 0).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_and_a_port() {
        for (text, host, port) in [
            ("localhost:9092", "localhost", 9092),
            ("kafka_1.example", "kafka_1.example", 9092),
            ("kafka:1", "kafka", 1),
            ("10.0.0.1:1", "10.0.0.1", 1),
            ("[::1]:65535", "::1", 65535),
            ("[::1]:2", "::1", 2),
            ("[::1]", "::1", 9092),
        ] {
            assert_eq!(host_and_port(text), Some((host, port)), "{text}");
        }
        for text in [
            "",
            "PLAINTEXT://h:9092",
            "kafka://h:9092",
            "h:",
            ":9092",
            "h:0",
            "h:65536",
            "h:+1",
            "h:kafka",
            "h:1:2",
            "::1",
            "[::1",
            "[h]:1",
            "[::1]1",
            "h/path",
            "u:p@h:1",
            "h 1",
            "h;i:1",
            "h\"",
            "kafk\u{e1}:1",
        ] {
            assert_eq!(host_and_port(text), None, "{text}");
        }
    }
}
