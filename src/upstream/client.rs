//! Sends requests to the backend over connections that are kept.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Response, Version};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;

use super::config::{BackendUrl, Config};
use super::outgoing::{Outgoing, Reserve};
use super::{UpstreamError, headers};
use crate::setting;
use crate::telemetry::chain;

/// The largest answer that is handed back, in bytes. The vendor's answers have a few hundred.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// The largest head of an answer, in bytes; as for callbacks.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// How long a connection is kept without a request. Shorter than the keep-alive time-out of common servers (gunicorn:
/// 2 s, Node.js: 5 s), so that a request rarely meets a connection that is just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long connections are reused. New ones look the host's name up again, and reach backends that were added.
const RENEW_CONNECTIONS: Duration = Duration::from_mins(1);

type Connector = TimeoutConnector<HttpsConnector<HttpConnector>>;
type HttpClient = legacy::Client<Connector, Full<Bytes>>;

/// A client of one backend.
#[derive(Debug)]
pub(super) struct BackendClient {
    /// Why connections cannot be opened at all, if the certificates are unusable.
    connector: Result<Connector, String>,
    current: Mutex<Option<(Instant, HttpClient)>>,
}

impl BackendClient {
    /// Reads certificates, so it blocks.
    pub(super) fn new(config: &Config, url: &BackendUrl) -> Self {
        Self {
            connector: connector(config, url),
            current: Mutex::default(),
        }
    }

    /// Whether connections can be opened as far as the certificates are concerned.
    pub(super) fn check(&self) -> Result<(), UpstreamError> {
        self.connector().map(drop)
    }

    fn connector(&self) -> Result<&Connector, UpstreamError> {
        let connector = self.connector.as_ref();
        connector.map_err(|reason| UpstreamError::Unreachable(reason.clone()))
    }

    /// Sends a request, and reads the whole answer.
    pub(super) async fn send(&self, outgoing: Outgoing) -> Result<Response<Bytes>, UpstreamError> {
        let Outgoing {
            request,
            reserved,
            mut reserve,
        } = outgoing;
        let client = self.current()?;
        let response = client.request(request).await.map_err(|error| {
            let reason = chain(&error);
            if error.is_connect() {
                UpstreamError::Unreachable(reason)
            } else {
                UpstreamError::BadAnswer(reason)
            }
        })?;
        let (mut parts, mut body) = response.into_parts();
        if parts.status.is_informational() {
            let reason = format!("it has the status {}", parts.status);
            return Err(UpstreamError::BadAnswer(reason));
        }
        let mut answer = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| UpstreamError::BadAnswer(chain(&error)))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if answer.len() + data.len() > MAX_ANSWER_BYTES {
                let reason = "it is larger than 1 MiB".to_owned();
                return Err(UpstreamError::BadAnswer(reason));
            }
            if !reserve(reserved + answer.len() + data.len()) {
                return Err(UpstreamError::TooMany);
            }
            answer.extend_from_slice(&data);
        }
        headers::from_backend(&mut parts.headers);
        // The version of the backend's connection is not that of ours (RFC 9112, section 2.3).
        parts.version = Version::HTTP_11;
        let answer = Bytes::from_owner(OwnedAnswer {
            bytes: answer,
            _reserved: reserve,
        });
        Ok(Response::from_parts(parts, answer))
    }

    fn current(&self) -> Result<HttpClient, UpstreamError> {
        let connector = self.connector()?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, client)) = &*current
            && since.elapsed() < RENEW_CONNECTIONS
        {
            return Ok(client.clone());
        }
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .http1_max_buf_size(MAX_HEAD_BYTES)
            .build(connector.clone());
        *current = Some((Instant::now(), client.clone()));
        Ok(client)
    }
}

/// An answer that keeps its memory reserved until it is written.
struct OwnedAnswer {
    bytes: Vec<u8>,
    _reserved: Reserve,
}

impl AsRef<[u8]> for OwnedAnswer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn connector(config: &Config, url: &BackendUrl) -> Result<Connector, String> {
    let roots = if url.is_https() {
        setting::system_authorities()
    } else {
        RootCertStore::empty()
    };
    let tls = config
        .tls
        .client_config(roots)
        .map_err(|error| format!("upstream.tls.{error}"))?;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    // The client may keep connecting after the request has given up, so connecting has timeouts of its own. All
    // addresses of a name share half of upstream.timeout, so that a dead first address does not hide the others.
    http.set_connect_timeout(Some(*config.timeout / 2));
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    let mut connector = TimeoutConnector::new(https);
    connector.set_connect_timeout(Some(*config.timeout));
    Ok(connector)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;
    use std::thread;

    use hyper::HeaderMap;

    use super::*;
    use crate::upstream::Outgoing;

    #[tokio::test]
    async fn connections_are_kept_for_a_while_and_then_renewed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        // Answers each request with the number of its connection, as a server does that speaks HTTP/1.0.
        thread::spawn(move || {
            for (number, stream) in (1..).zip(listener.incoming()) {
                let mut stream = BufReader::new(stream.unwrap());
                thread::spawn(move || {
                    let mut line = String::new();
                    while stream.read_line(&mut line).unwrap() > 0 {
                        if line == "\r\n" {
                            let answer = format!(
                                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n{number}"
                            );
                            stream.get_mut().write_all(answer.as_bytes()).unwrap();
                        }
                        line.clear();
                    }
                });
            }
        });
        let client = BackendClient::new(&Config::default(), &url.parse().unwrap());
        let connection = async || {
            let uri = url.parse().unwrap();
            let reserve = Box::new(|_| true);
            let outgoing = Outgoing::new(uri, HeaderMap::new(), Bytes::new(), 0, reserve);
            let answer = client.send(outgoing).await.unwrap();
            assert_eq!(answer.version(), Version::HTTP_11);
            answer.into_body()
        };
        assert_eq!(connection().await, "1");
        assert_eq!(connection().await, "1");
        let current = client.current.lock().unwrap().take();
        let (since, http) = current.unwrap();
        let earlier = since.checked_sub(RENEW_CONNECTIONS).unwrap();
        *client.current.lock().unwrap() = Some((earlier, http));
        assert_eq!(connection().await, "2");
        assert_eq!(connection().await, "2");
    }
}
