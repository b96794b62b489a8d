//! Protects against DNS rebinding: a web page in a browser on this host can let its own name resolve to the loopback.
//! The browser would then let the page read the listener's answers, so such requests are refused.

use std::net::{IpAddr, SocketAddr};

use hyper::Request;
use hyper::header::HOST;
use hyper::http::uri::Authority;

/// Whether a request may be answered. A request from the loopback must not name another host, in its target or, if the
/// target has none, in `Host`. A request with neither is not from a browser, so it is answered.
pub(super) fn is_allowed<B>(request: &Request<B>, peer: SocketAddr) -> bool {
    if !peer.ip().to_canonical().is_loopback() {
        return true;
    }
    if let Some(target) = request.uri().authority() {
        return is_loopback(target);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    hosts.all(|host| Authority::try_from(host.as_bytes()).is_ok_and(|host| is_loopback(&host)))
}

fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host();
    let host = host.strip_suffix('.').unwrap_or(host);
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if let Ok(address) = address.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    // Resolvers answer names below `localhost` with the loopback (RFC 6761, section 6.3).
    let (_, last) = host.rsplit_once('.').unwrap_or(("", host));
    last.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, hosts: &[&str]) -> Request<()> {
        let request = Request::get(target);
        let with_host =
            |request: hyper::http::request::Builder, host: &&str| request.header(HOST, *host);
        hosts.iter().fold(request, with_host).body(()).unwrap()
    }

    #[test]
    fn requests_from_the_loopback_must_name_it() {
        for (target, hosts, allowed) in [
            ("/", &[][..], true),
            ("/", &["localhost"], true),
            ("/", &["LocalHost:8081"], true),
            ("/", &["localhost.:8081"], true),
            ("/", &["relay.localhost"], true),
            ("/", &["127.0.0.1:8081"], true),
            ("/", &["127.1.2.3"], true),
            ("/", &["[::1]:8081"], true),
            ("/", &["[::ffff:127.0.0.1]"], true),
            ("http://localhost/livez", &["evil.example"], true),
            ("/", &["evil.example"], false),
            ("/", &["evil.example:8081"], false),
            ("/", &["localhost.evil.example"], false),
            ("/", &["127.0.0.1.evil.example"], false),
            ("/", &["evillocalhost"], false),
            ("/", &["localhost@evil.example"], false),
            ("/", &["localhost.."], false),
            ("/", &["192.0.2.1:8081"], false),
            ("/", &["0.0.0.0:8081"], false),
            ("/", &["[2001:db8::1]"], false),
            ("/", &[""], false),
            ("/", &["a b"], false),
            ("/", &["localhost", "evil.example"], false),
            ("http://evil.example/livez", &["localhost"], false),
        ] {
            let request = request(target, hosts);
            for peer in [
                "127.0.0.1:1",
                "127.9.9.9:1",
                "[::1]:1",
                "[::ffff:127.0.0.1]:1",
            ] {
                let peer = peer.parse().unwrap();
                assert_eq!(
                    is_allowed(&request, peer),
                    allowed,
                    "{target} {hosts:?} {peer}"
                );
            }
            for peer in ["192.0.2.1:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1"] {
                assert!(
                    is_allowed(&request, peer.parse().unwrap()),
                    "{target} {hosts:?} {peer}"
                );
            }
        }
    }
}
