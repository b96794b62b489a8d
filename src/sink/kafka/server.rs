//! A bootstrap server's address.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// `host`, `host:port` or `[IPv6]:port`; librdkafka's default port is 9092. librdkafka logs what it cannot read and
/// then has one server less, or none, so whatever it could misread is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server(String);

impl FromStr for Server {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains("://") {
            return Err(
                "must be host:port without a scheme; set the protocol with kafka.properties.security.protocol",
            );
        }
        let is_host = |host: &str| {
            !host.is_empty()
                && host
                    .chars()
                    .all(|char| char.is_ascii_alphanumeric() || "-._".contains(char))
        };
        let is_port = |port: &str| {
            port.bytes().all(|byte| byte.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        };
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let valid = match (bracketed, text.rsplit_once(':')) {
            (Some((address, port)), _) => {
                address.parse::<Ipv6Addr>().is_ok()
                    && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
            }
            (None, Some((host, port))) => is_host(host) && is_port(port),
            (None, None) => is_host(text),
        };
        valid
            .then(|| Self(text.to_owned()))
            .ok_or("must be host:port, such as kafka.example:9092 or [2001:db8::1]:9092")
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
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
            assert_eq!(text.parse::<Server>().unwrap().to_string(), text);
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
            assert!(text.parse::<Server>().is_err(), "{text}");
        }
    }
}
