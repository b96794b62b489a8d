//! The headers of a request that is handed on, and of its answer.

use std::net::IpAddr;

use hyper::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue};

/// Headers that apply to one connection only (RFC 9110, section 7.6.1), beside those that `Connection` names. Bodies
/// are complete before they are handed on, so `Trailer` does not apply either.
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

const FORWARDED_FOR: &str = "x-forwarded-for";
const FORWARDED_HOST: &str = "x-forwarded-host";

/// Turns the headers of a callback into those of the request to the backend. `Host` and `Content-Length` are added when
/// it is sent. `is_proxy` says whether the peer is a proxy whose headers about the client are trusted.
pub(super) fn to_backend(headers: &mut HeaderMap, peer: IpAddr, is_proxy: bool) {
    let host = headers.remove(HOST);
    remove_hop_by_hop(headers);
    // Any client can send these headers, and the backend would trust them as if the relay had set them.
    let is_claim =
        |name: &&HeaderName| is_about_client(name) && (!is_proxy || name.as_str().contains('_'));
    let claims: Vec<HeaderName> = headers.keys().filter(is_claim).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
    // The whole body has arrived: there is nothing left to wait for.
    headers.remove(EXPECT);
    headers.remove(CONTENT_LENGTH);
    let mut forwarded = Vec::new();
    for value in headers.get_all(FORWARDED_FOR) {
        forwarded.extend_from_slice(value.as_bytes());
        forwarded.extend_from_slice(b", ");
    }
    forwarded.extend_from_slice(peer.to_canonical().to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&forwarded) {
        headers.insert(FORWARDED_FOR, value);
    }
    if let (false, Some(host)) = (headers.contains_key(FORWARDED_HOST), host) {
        headers.insert(FORWARDED_HOST, host);
    }
}

/// Whether a header says who the client is, other than `X-Forwarded-For`, to which the peer is appended. Through CGI
/// and its successors, `X_Real_IP` is the same variable as `X-Real-IP`.
fn is_about_client(name: &HeaderName) -> bool {
    let dashed = name.as_str().replace('_', "-");
    let is_known =
        dashed == "forwarded" || dashed == "x-real-ip" || dashed.starts_with("x-forwarded-");
    is_known && name != FORWARDED_FOR
}

/// Turns the headers of the backend's answer into those of ours. `Content-Length` is added when it is sent.
pub(super) fn from_backend(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    headers.remove(CONTENT_LENGTH);
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let connection = headers.get_all(CONNECTION).into_iter();
    let named: Vec<HeaderName> = connection
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn sorted(headers: &HeaderMap) -> Vec<(&str, &str)> {
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn only_end_to_end_headers_reach_the_backend() {
        let mut headers = headers(&[
            ("host", "im.example"),
            ("content-type", "application/json; charset=x"),
            ("content-length", "7"),
            ("connection", "keep-alive, X-Hop"),
            ("connection", "Content-Length"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-connection", "close"),
            ("expect", "100-continue"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("x-custom", "\u{9}kept"),
        ]);
        to_backend(&mut headers, "::ffff:203.0.113.7".parse().unwrap(), false);
        assert_eq!(
            sorted(&headers),
            [
                ("content-type", "application/json; charset=x"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
                ("x-custom", "\u{9}kept"),
                ("x-forwarded-for", "203.0.113.7"),
                ("x-forwarded-host", "im.example"),
            ]
        );
    }

    #[test]
    fn the_peer_is_appended_and_only_a_trusted_proxy_names_the_client() {
        let forward = |trusted: bool| {
            let mut headers = headers(&[
                ("host", "inner"),
                ("x-forwarded-for", "198.51.100.1"),
                ("x-forwarded-for", "198.51.100.2, 10.0.0.1"),
                ("x-forwarded-host", "outer"),
                ("x-forwarded-proto", "https"),
                ("forwarded", "for=192.0.2.1"),
                ("x-real-ip", "192.0.2.1"),
                ("x_forwarded_for", "192.0.2.1"),
            ]);
            to_backend(&mut headers, "10.0.0.2".parse().unwrap(), trusted);
            headers
        };
        let forwarded = "198.51.100.1, 198.51.100.2, 10.0.0.1, 10.0.0.2";
        let expected = [
            ("x-forwarded-for", forwarded),
            ("x-forwarded-host", "inner"),
        ];
        assert_eq!(sorted(&forward(false)), expected);
        let expected = [
            ("forwarded", "for=192.0.2.1"),
            ("x-forwarded-for", forwarded),
            ("x-forwarded-host", "outer"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "192.0.2.1"),
        ];
        assert_eq!(sorted(&forward(true)), expected);
    }

    #[test]
    fn only_end_to_end_headers_of_the_answer_come_back() {
        let mut headers = headers(&[
            ("content-type", "text/plain"),
            ("content-length", "3"),
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("server", "backend"),
        ]);
        from_backend(&mut headers);
        let expected = [
            ("content-type", "text/plain"),
            ("server", "backend"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ];
        assert_eq!(sorted(&headers), expected);
    }
}
