//! `/`: a page for people that shows what `/status` says. It is one answer without outside parts, and it changes
//! nothing.
//!
//! The relay shows names and texts that come from outside. The script only ever makes text of them, and the policy
//! would neither run a script that the relay did not write nor load or send anything elsewhere.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY};
use hyper::{Response, StatusCode};
use sha2::{Digest as _, Sha256};

use super::respond_fresh;

const HTML: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
/// In this order: each uses functions of those before it.
const SCRIPTS: [&str; 4] = [
    include_str!("page/format.js"),
    include_str!("page/plot.js"),
    include_str!("page/state.js"),
    include_str!("page/page.js"),
];

/// The page, and the policy that allows its style and its script.
static PAGE: LazyLock<(Bytes, HeaderValue)> = LazyLock::new(assemble);

fn assemble() -> (Bytes, HeaderValue) {
    let script = SCRIPTS.concat();
    let page = HTML
        .replace("/* style */", STYLE)
        .replace("/* script */", &script);
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(&script),
        hash(STYLE),
    );
    // A policy without control characters is a header value.
    let policy = HeaderValue::try_from(policy)
        .unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"));
    (page.into(), policy)
}

/// The source expression of an inline style or script.
fn hash(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}

/// The answer to a request for the page.
pub(super) fn answer() -> Response<Full<Bytes>> {
    let (page, policy) = &*PAGE;
    let mut response = respond_fresh(StatusCode::OK, "text/html; charset=utf-8", page.clone());
    let headers: [(HeaderName, HeaderValue); 2] = [
        (CONTENT_SECURITY_POLICY, policy.clone()),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    response.headers_mut().extend(headers);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_allows_what_the_page_contains_and_nothing_else() {
        let (page, policy) = assemble();
        let page = std::str::from_utf8(&page).unwrap();
        let policy = policy.to_str().unwrap();
        for (begin, end, directive) in [
            ("<style>", "</style>", "style-src"),
            ("<script>", "</script>", "script-src"),
        ] {
            let (_, rest) = page.split_once(begin).unwrap();
            let (inline, rest) = rest.split_once(end).unwrap();
            assert!(!rest.contains(begin), "{begin} occurs twice");
            let allowed = format!("; {directive} '{}';", hash(inline));
            assert!(policy.contains(&allowed), "{policy}");
        }
        assert!(policy.starts_with("default-src 'none';"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        // A hash does not cover these, so the policy would block them.
        for blocked in [" style=", " onclick=", " src=", "javascript:"] {
            assert!(!page.contains(blocked), "{blocked}");
        }
    }
}
