//! A keep-alive connection to the relay with one request at a time.
//!
//! The connection has no task of its own: the caller that waits for the answer polls it. A load generator should leave
//! as much CPU as it can to a relay on the same machine.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::LOCATION;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::request::Endpoint;

/// The maximum length of an answer: the vendor's JSON is shorter.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The relay's answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// Where it redirects to.
    pub location: Option<String>,
    /// The whole body.
    pub body: Bytes,
}

/// Why there was no answer.
#[derive(Debug)]
pub enum SendFailure {
    /// The connection could not be opened.
    Connect(io::Error),
    /// The TLS handshake failed.
    Handshake(io::Error),
    /// The connection broke after a part of the request was written: the request may have arrived.
    Lost(Box<dyn Error + Send + Sync>),
}

/// Opened when it is first used, and again after it was closed or has broken.
#[derive(Debug)]
pub struct Connection {
    endpoint: Endpoint,
    /// For `https`.
    tls: Option<Arc<ClientConfig>>,
    open: Option<Open>,
}

type Io = http1::Connection<TokioIo<Either<TcpStream, TlsStream<TcpStream>>>, Full<Bytes>>;

struct Open {
    sender: SendRequest<Full<Bytes>>,
    /// The future that reads and writes the socket; `None` when it has ended.
    io: Option<Pin<Box<Io>>>,
}

/// Why an exchange failed.
enum Broken {
    /// No byte of the request was written: the relay had closed the idle connection, or refuses the client's
    /// certificate, which the client learns only after the handshake. hyper reads before it writes, so it notices even
    /// if nobody has polled the connection since.
    Unsent(Box<Request<Full<Bytes>>>, Option<hyper::Error>),
    /// The request may have arrived.
    Lost(Box<dyn Error + Send + Sync>),
}

impl Connection {
    /// A connection to `endpoint` that is not open yet; with TLS if there is a `tls`.
    pub const fn new(endpoint: Endpoint, tls: Option<Arc<ClientConfig>>) -> Self {
        Self {
            endpoint,
            tls,
            open: None,
        }
    }

    /// Opens the connection, so that the first request does not have to.
    ///
    /// # Errors
    /// Fails if the relay cannot be reached.
    pub async fn open(&mut self) -> Result<(), SendFailure> {
        self.open = Some(self.connect().await?);
        Ok(())
    }

    /// Posts a request and waits for the whole answer.
    ///
    /// Cancel safety: dropping the future closes the connection, so that a late answer is never taken for the answer
    /// to the next request. A request is sent again only if the relay had closed the connection before any of it was
    /// written.
    ///
    /// # Errors
    /// Fails if no connection can be opened, or if it breaks before the answer is complete.
    pub async fn post(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, SendFailure> {
        let request = match self.open.take() {
            None => request,
            Some(mut open) => match open.exchange(request).await {
                Ok(answer) => return Ok(self.keep(open, answer)),
                Err(Broken::Lost(error)) => return Err(SendFailure::Lost(error)),
                Err(Broken::Unsent(request, _)) => *request,
            },
        };
        let mut open = self.connect().await?;
        match open.exchange(request).await {
            Ok(answer) => Ok(self.keep(open, answer)),
            Err(Broken::Lost(error)) => Err(SendFailure::Lost(error)),
            Err(Broken::Unsent(_, why)) => Err(SendFailure::Lost(
                why.map_or_else(|| "closed before it was used".into(), Into::into),
            )),
        }
    }

    async fn connect(&self) -> Result<Open, SendFailure> {
        let connect = TcpStream::connect((self.endpoint.host.as_str(), self.endpoint.port));
        let stream = connect.await.map_err(SendFailure::Connect)?;
        stream.set_nodelay(true).map_err(SendFailure::Connect)?;
        let stream = match &self.tls {
            None => Either::Left(stream),
            Some(config) => {
                let name = ServerName::try_from(self.endpoint.host.clone())
                    .map_err(|error| SendFailure::Handshake(io::Error::other(error)))?;
                let connector = TlsConnector::from(Arc::clone(config));
                let connect = connector.connect(name, stream);
                Either::Right(connect.await.map_err(SendFailure::Handshake)?)
            }
        };
        let (sender, io) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| SendFailure::Lost(error.into()))?;
        Ok(Open {
            sender,
            io: Some(Box::pin(io)),
        })
    }

    fn keep(&mut self, open: Open, answer: Answer) -> Answer {
        if open.io.is_some() {
            self.open = Some(open);
        }
        answer
    }
}

impl Open {
    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, Broken> {
        let sender = &mut self.sender;
        let mut exchange = pin!(async move {
            if sender.ready().await.is_err() {
                return Err(Broken::Unsent(request.into(), None));
            }
            let response = match sender.try_send_request(request).await {
                Ok(response) => response,
                Err(mut error) => {
                    return Err(match error.take_message() {
                        Some(request) => Broken::Unsent(request.into(), Some(error.into_error())),
                        None => Broken::Lost(error.into_error().into()),
                    });
                }
            };
            let status = response.status();
            let location = response.headers().get(LOCATION);
            let location = location.map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
            match Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await
            {
                Ok(body) => Ok(Answer {
                    status,
                    location,
                    body: body.to_bytes(),
                }),
                Err(error) => Err(Broken::Lost(error)),
            }
        });
        let mut ended = Ok(());
        if let Some(io) = &mut self.io {
            tokio::select! {
                biased;
                done = &mut exchange => return done,
                end = io.as_mut() => ended = end,
            }
            self.io = None;
        }
        match exchange.await {
            // The exchange does not know why the connection ended before it could begin.
            Err(Broken::Unsent(request, None)) => Err(Broken::Unsent(request, ended.err())),
            done => done,
        }
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").finish_non_exhaustive()
    }
}

impl fmt::Display for SendFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Handshake(error) => {
                write!(f, "TLS handshake failed: {error}")?;
                match error.get_ref().and_then(|cause| cause.downcast_ref()) {
                    Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                        f.write_str("; --ca names an authority to trust")
                    }
                    Some(rustls::Error::InvalidMessage(_)) => {
                        f.write_str("; does the relay speak plain HTTP?")
                    }
                    _ => Ok(()),
                }
            }
            Self::Lost(error) => {
                write!(f, "connection lost: {error}")?;
                let mut source = error.source();
                while let Some(error) = source {
                    write!(f, ": {error}")?;
                    source = error.source();
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Reads one request.
    async fn read(stream: &mut TcpStream) {
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
    }

    /// Answers one request on a new connection, and keeps it open.
    async fn answer_first(listener: &TcpListener, status: &str) -> TcpStream {
        let (mut stream, _) = listener.accept().await.unwrap();
        read(&mut stream).await;
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream
    }

    fn connection(listener: &TcpListener) -> Connection {
        let url = format!("http://{}/", listener.local_addr().unwrap());
        Connection::new(url.parse().unwrap(), None)
    }

    fn request() -> Request<Full<Bytes>> {
        Request::post("/").body("body".into()).unwrap()
    }

    #[tokio::test]
    async fn opens_again_after_the_relay_has_closed_an_idle_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut connection = connection(&listener);
        let (mut relay, first) = tokio::join!(
            answer_first(&listener, "200 OK"),
            connection.post(request())
        );
        assert_eq!(first.unwrap().status, 200);
        assert!(connection.open.is_some());
        relay.shutdown().await.unwrap();
        drop(relay);
        // Time passes between callbacks; here just enough for the runtime to poll its sockets.
        tokio::task::yield_now().await;
        let relay = timeout(LIMIT, answer_first(&listener, "202 Accepted"));
        let (relay, second) = tokio::join!(relay, timeout(LIMIT, connection.post(request())));
        let second = second.expect("answered").unwrap();
        relay.expect("connected again");
        assert_eq!((second.status.as_u16(), &*second.body), (202, &b"ok"[..]));
    }

    #[tokio::test]
    async fn a_request_that_may_have_arrived_is_not_repeated() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut connection = connection(&listener);
        let (mut relay, first) = tokio::join!(
            answer_first(&listener, "200 OK"),
            connection.post(request())
        );
        first.unwrap();
        let reads_and_closes = async move { read(&mut relay).await };
        let vendor = timeout(LIMIT, connection.post(request()));
        let ((), second) = tokio::join!(reads_and_closes, vendor);
        let failure = second.expect("answered, or repeated").unwrap_err();
        assert!(matches!(failure, SendFailure::Lost(_)), "{failure}");
    }

    #[tokio::test]
    async fn a_connection_that_is_lost_before_its_first_request_tells_why() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connection = connection(&listener);
        let mut open = connection.connect().await.unwrap();
        let (relay, _) = listener.accept().await.unwrap();
        relay.set_zero_linger().unwrap();
        drop(relay);
        let broken = timeout(LIMIT, open.exchange(request())).await.unwrap();
        let Err(Broken::Unsent(_, Some(why))) = broken else {
            panic!("not an unsent request with its cause");
        };
        let why = SendFailure::Lost(why.into()).to_string();
        assert!(why.contains("reset by peer"), "{why}");
    }
}
