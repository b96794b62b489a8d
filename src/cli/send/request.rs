//! The request for a callback.

use std::fmt;
use std::str::FromStr;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HOST;
use hyper::http::uri::Scheme;
use hyper::{Request, Uri};

use super::callbacks::Callback;
use crate::setting::{ClientTls, Secret};
use crate::vendor::CallbackKind;

/// The address and path that a relay listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: Scheme,
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
        let scheme = uri.scheme().cloned();
        let scheme = scheme.filter(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme));
        let scheme = scheme.ok_or("must begin with http:// or https://")?;
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or("has no host")?;
        let default_port = if scheme == Scheme::HTTPS { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default_port);
        Ok(Self {
            scheme,
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

impl fmt::Display for Endpoint {
    /// Without parameters: they may have a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, _) = self
            .path_and_query
            .split_once('?')
            .unwrap_or((&self.path_and_query, ""));
        write!(f, "{}://{}{path}", self.scheme, self.authority)
    }
}

/// Builds the requests.
#[derive(Debug)]
pub struct Requests {
    /// The relay to post to.
    pub endpoint: Endpoint,
    /// The application that the callbacks belong to.
    pub sdk_app_id: u64,
    /// Signs the requests; if there is none, they have no signature.
    pub token: Option<Secret>,
    /// The certificates that `curl` needs, too.
    pub tls: ClientTls,
}

impl Requests {
    /// Builds the request that posts `callback`, signed at `now` (Unix seconds).
    ///
    /// # Errors
    /// Fails if the URL is not valid in a request.
    pub fn request(&self, callback: Callback, now: u64) -> anyhow::Result<Request<Full<Bytes>>> {
        Request::post(self.target(callback.kind, now))
            .header(HOST, &self.endpoint.authority)
            .body(callback.body.into())
            .context("making a request")
    }

    /// The same request as a shell command.
    pub fn curl(&self, callback: &Callback, now: u64) -> String {
        let Endpoint {
            scheme, authority, ..
        } = &self.endpoint;
        let url = format!("{scheme}://{authority}{}", self.target(callback.kind, now));
        let ClientTls { ca, cert, key } = &self.tls;
        let files: String = [("cacert", ca), ("cert", cert), ("key", key)]
            .into_iter()
            .filter_map(|(option, file)| {
                let file = file.as_ref()?.display().to_string();
                Some(format!(" --{option} {}", quoted(&file)))
            })
            .collect();
        format!(
            "curl -sS{files} -H 'Content-Type: application/json' --data-raw {} {}",
            quoted(&callback.body),
            quoted(&url)
        )
    }

    /// Path and parameters.
    fn target(&self, kind: CallbackKind, now: u64) -> String {
        let target = &self.endpoint.path_and_query;
        let separator = match target.chars().last() {
            Some('?' | '&') => "",
            _ if target.contains('?') => "&",
            _ => "?",
        };
        let signature = self.token.as_ref().map(|token| (token.expose(), now));
        let query = kind.query(self.sdk_app_id, signature);
        format!("{target}{separator}{query}")
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(url: &str) -> Requests {
        Requests {
            endpoint: url.parse().unwrap(),
            sdk_app_id: 1_400_000_001,
            token: None,
            tls: ClientTls::default(),
        }
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
                requests(url).target(CallbackKind::Probe, 0),
                format!("{start}CallbackCommand=Group.CallbackAfterRecallMsg&contenttype=json")
            );
        }
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
        assert_eq!(read("https://relay"), parts("relay", 443, "relay"));
        assert_eq!(
            read("https://relay:8443/"),
            parts("relay", 8443, "relay:8443")
        );
        for url in ["relay:8080", "ftp://relay/"] {
            let problem = "must begin with http:// or https://".to_owned();
            assert_eq!(read(url), Err(problem));
        }
        assert!(read("http://re lay/").is_err());
    }

    #[test]
    fn a_line_for_the_shell_is_quoted() {
        let callback = Callback {
            kind: CallbackKind::Probe,
            body: r#"{"a":"it's"}"#.to_owned(),
        };
        assert_eq!(
            requests("http://relay/").curl(&callback, 0),
            "curl -sS -H 'Content-Type: application/json' --data-raw '{\"a\":\"it'\\''s\"}' \
             'http://relay/?CallbackCommand=Group.CallbackAfterRecallMsg&contenttype=json'"
        );
        let mut requests = requests("https://relay:8443/");
        requests.tls = ClientTls {
            ca: Some("ca.pem".into()),
            cert: Some("my cert.pem".into()),
            key: Some("key.pem".into()),
        };
        assert_eq!(
            requests.curl(&callback, 0),
            "curl -sS --cacert 'ca.pem' --cert 'my cert.pem' --key 'key.pem' -H 'Content-Type: application/json' \
             --data-raw '{\"a\":\"it'\\''s\"}' \
             'https://relay:8443/?CallbackCommand=Group.CallbackAfterRecallMsg&contenttype=json'"
        );
    }
}
