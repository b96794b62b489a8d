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
    if !servers.iter().all(|server| is_server(server)) {
        let problem =
            "must be host:port, such as kafka.example:9092 or [2001:db8::1]:9092, or several";
        return Err(D::Error::custom(problem));
    }
    Ok(servers.to_string())
}

fn is_server(text: &str) -> bool {
    let is_port =
        |port: &str| !port.starts_with('+') && port.parse::<u16>().is_ok_and(|port| port > 0);
    let in_host = |char: char| char.is_ascii_alphanumeric() || "-._".contains(char);
    if let Some((address, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let port = port.strip_prefix(':').map_or(port.is_empty(), is_port);
        return port && address.parse::<Ipv6Addr>().is_ok();
    }
    let (host, port) = text.split_once(':').unwrap_or((text, "9092"));
    !host.is_empty() && host.chars().all(in_host) && is_port(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_and_a_port() {
        for text in [
            "localhost:9092",
            "kafka_1.example",
            "10.0.0.1:1",
            "[::1]:65535",
            "[::1]",
        ] {
            assert!(is_server(text), "{text}");
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
            assert!(!is_server(text), "{text}");
        }
    }
}
