//! The request for a callback: the URL's parameters and the signature.

use std::str::FromStr;

use anyhow::Context as _;
use bytes::Bytes;
use form_urlencoded::Serializer;
use http_body_util::Full;
use hyper::header::HOST;
use hyper::http::uri::Scheme;
use hyper::{Request, Uri};
use sha2::{Digest as _, Sha256};

use super::callbacks::{Callback, CallbackKind};
use crate::setting::Secret;

/// The address and path that a relay listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Host and port as in the URL.
    pub authority: String,
    /// The rest of the URL; it may have parameters.
    path_and_query: String,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("not a URL: {error}"))?;
        match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => {}
            Some(scheme) if *scheme == Scheme::HTTPS => {
                return Err("only http:// is spoken; put something that ends TLS between".into());
            }
            _ => return Err("must begin with http://".into()),
        }
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or("has no host")?;
        let port = uri.port_u16().unwrap_or(80);
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            authority: match uri.port() {
                Some(port) => format!("{host}:{port}"),
                None => host.to_owned(),
            },
            path_and_query: uri
                .path_and_query()
                .map_or("/", |rest| rest.as_str())
                .to_owned(),
        })
    }
}

/// What identifies the vendor in every request.
#[derive(Debug)]
pub struct Vendor {
    /// The relay to post to.
    pub endpoint: Endpoint,
    /// The application that the callbacks belong to.
    pub sdk_app_id: u64,
    /// Signs the requests; if there is none, they have no signature.
    pub token: Option<Secret>,
}

impl Vendor {
    /// Builds the request that posts `callback`, signed at `now` (Unix seconds).
    ///
    /// # Errors
    /// Fails if the URL is not valid in a request.
    pub fn request(&self, callback: &Callback, now: u64) -> anyhow::Result<Request<Full<Bytes>>> {
        Request::post(self.target(callback.kind, now))
            .header(HOST, &self.endpoint.authority)
            .body(Full::new(callback.body.clone()))
            .context("making a request")
    }

    /// The same request as a shell command.
    pub fn curl(&self, callback: &Callback, now: u64) -> String {
        let Endpoint { authority, .. } = &self.endpoint;
        let url = format!("http://{authority}{}", self.target(callback.kind, now));
        let body = String::from_utf8_lossy(&callback.body);
        format!(
            "curl -sS -H 'Content-Type: application/json' --data-raw {} {}",
            quoted(&body),
            quoted(&url)
        )
    }

    /// Path and parameters; a probe has no application and no signature.
    fn target(&self, kind: CallbackKind, now: u64) -> String {
        let mut target = self.endpoint.path_and_query.clone();
        match target.chars().last() {
            Some('?' | '&') => {}
            _ if target.contains('?') => target.push('&'),
            _ => target.push('?'),
        }
        let start = target.len();
        let mut query = Serializer::for_suffix(target, start);
        if kind != CallbackKind::Probe {
            query.append_pair("SdkAppid", &self.sdk_app_id.to_string());
        }
        query
            .append_pair("CallbackCommand", kind.command())
            .append_pair("contenttype", "json");
        if kind != CallbackKind::Probe {
            query
                .append_pair("ClientIP", "127.0.0.1")
                .append_pair("OptPlatform", "RESTAPI");
            if let Some(token) = &self.token {
                let request_time = now.to_string();
                query
                    .append_pair("Sign", &sign(token, &request_time))
                    .append_pair("RequestTime", &request_time);
            }
        }
        query.finish()
    }
}

/// SHA-256 of the token followed by the time. This does not use the receiver's code on purpose: if both sides
/// called one function, neither would check it.
fn sign(token: &Secret, request_time: &str) -> String {
    let hash = Sha256::new()
        .chain_update(token.expose())
        .chain_update(request_time)
        .finalize();
    hex::encode(hash)
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::from(text.to_owned())
    }

    fn vendor(url: &str, token: Option<&str>) -> Vendor {
        Vendor {
            endpoint: url.parse().unwrap(),
            sdk_app_id: 1_400_000_001,
            token: token.map(secret),
        }
    }

    #[test]
    fn signs_as_the_vendor_does() {
        assert_eq!(
            sign(&secret("xxxxyyyy"), "1669872112"),
            "17773bc39a671d7b9aa835458704d2a6db81360a5940292b587d6d760d484061"
        );
        assert_eq!(
            sign(&secret("test-token"), "1700000000"),
            "fdedb59e60a8d79ebb349080c302a68a79ac6602cc5dbed2a4a94b9ced465f23"
        );
    }

    #[test]
    fn parameters_are_appended_to_those_of_the_url() {
        for (url, start) in [
            ("http://127.0.0.1:8080", "/?"),
            ("http://127.0.0.1:8080/", "/?"),
            ("http://127.0.0.1:8080/im", "/im?"),
            ("http://127.0.0.1:8080/im?", "/im?"),
            ("http://127.0.0.1:8080/im?a=b%20c", "/im?a=b%20c&"),
        ] {
            assert_eq!(
                vendor(url, None).target(CallbackKind::Group, 1_700_000_000),
                format!(
                    "{start}SdkAppid=1400000001&CallbackCommand=Group.CallbackAfterRecallMsg\
                     &contenttype=json&ClientIP=127.0.0.1&OptPlatform=RESTAPI"
                )
            );
        }
    }

    #[test]
    fn a_token_adds_signature_and_time() {
        let target =
            vendor("http://relay/", Some("test-token")).target(CallbackKind::C2c, 1_700_000_000);
        assert!(
            target.ends_with(
                "&OptPlatform=RESTAPI\
                 &Sign=fdedb59e60a8d79ebb349080c302a68a79ac6602cc5dbed2a4a94b9ced465f23\
                 &RequestTime=1700000000"
            ),
            "{target}"
        );
    }

    #[test]
    fn a_probe_is_anonymous() {
        assert_eq!(
            vendor("http://relay/", Some("test-token")).target(CallbackKind::Probe, 1_700_000_000),
            "/?CallbackCommand=Group.CallbackAfterRecallMsg&contenttype=json"
        );
    }

    #[test]
    fn reads_host_and_port() {
        let read = |url: &str| {
            let endpoint: Endpoint = url.parse()?;
            Ok((endpoint.host, endpoint.port, endpoint.authority))
        };
        let parts = |host: &str, port, authority: &str| Ok((host.into(), port, authority.into()));
        assert_eq!(read("http://relay"), parts("relay", 80, "relay"));
        assert_eq!(
            read("http://[::1]:8080/x"),
            parts("::1", 8080, "[::1]:8080")
        );
        assert_eq!(
            read("relay:8080"),
            Err("must begin with http://".to_owned())
        );
        assert!(read("https://relay/").is_err());
        assert!(read("http://re lay/").is_err());
    }

    #[test]
    fn a_line_for_the_shell_is_quoted() {
        let callback = Callback {
            kind: CallbackKind::Probe,
            body: Bytes::from_static(br#"{"a":"it's"}"#),
        };
        assert_eq!(
            vendor("http://relay/", None).curl(&callback, 0),
            "curl -sS -H 'Content-Type: application/json' --data-raw '{\"a\":\"it'\\''s\"}' \
             'http://relay/?CallbackCommand=Group.CallbackAfterRecallMsg&contenttype=json'"
        );
    }
}
