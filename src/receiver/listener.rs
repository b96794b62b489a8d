//! Accepts connections and serves HTTP/1.1 on them, within limits.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::connection_timer::ConnectionTimer;
use super::limits::Limits;
use crate::telemetry::Reminder;

/// Maximum size of a request's head, and of each read.
const BUFFER: usize = 64 << 10;

/// How long to pause when the system is out of resources for new connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {address}")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    limits: Limits,
    connections: Gauge,
}

/// Counts a connection while it is open.
struct OpenConnection {
    connections: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl OpenConnection {
    fn new(connections: &Gauge, permit: OwnedSemaphorePermit) -> Self {
        connections.inc();
        Self {
            connections: connections.clone(),
            _permit: permit,
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.connections.dec();
    }
}

impl Listener {
    /// Binds a socket, but does not accept connections yet.
    ///
    /// # Errors
    /// Fails if the address cannot be bound.
    pub async fn bind(address: SocketAddr, limits: Limits) -> Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self {
            socket,
            address,
            limits,
            connections: Gauge::default(),
        })
    }

    /// The address that the socket is bound to.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of open connections.
    #[must_use]
    pub const fn connections(&self) -> &Gauge {
        &self.connections
    }

    /// Serves connections until `stop` is cancelled. Then closes the socket, lets open requests finish, and returns
    /// when the last connection has ended. Dropping the future closes all connections.
    pub async fn serve<S, F>(self, service: S, stop: CancellationToken)
    where
        S: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let mut connections = JoinSet::new();
        let permits = Arc::new(Semaphore::new(
            self.limits.connections.clamp(1, Semaphore::MAX_PERMITS),
        ));
        let mut failing: Option<Reminder> = None;
        loop {
            // Acquire the permit before accepting, so that a full server leaves connections in the kernel's backlog.
            let permit = tokio::select! {
                () = stop.cancelled() => break,
                Ok(permit) = Arc::clone(&permits).acquire_owned() => permit,
            };
            let (stream, peer) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.socket.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) if is_of_one_connection(&error) => continue,
                    Err(error) => {
                        let now = Instant::now();
                        let reminder = failing.get_or_insert_with(|| Reminder::new(now));
                        if let Some(lasted) = reminder.due_for(&error.to_string(), now) {
                            error!(
                                code = "accept_failed", address = %self.address, %error,
                                seconds = lasted.as_secs(),
                                "connections cannot be accepted; retrying; check the limit of open \
                                 files and memory"
                            );
                        }
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            if failing.take().is_some() {
                info!(
                    code = "accept_recovered", address = %self.address,
                    "connections are accepted again"
                );
            }
            // Answers are small: do not wait for more data to send (Nagle).
            let _ = stream.set_nodelay(true);
            connections.spawn(serve_connection(
                stream,
                peer,
                self.limits,
                service.clone(),
                stop.clone(),
                OpenConnection::new(&self.connections, permit),
            ));
            // Remove finished tasks, so that the set does not grow.
            while connections.try_join_next().is_some() {}
        }
        // Refuse new connections while the open ones finish.
        drop(self.socket);
        while connections.join_next().await.is_some() {}
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

async fn serve_connection<S, F>(
    stream: TcpStream,
    peer: SocketAddr,
    limits: Limits,
    service: S,
    stop: CancellationToken,
    _open: OpenConnection,
) where
    S: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let timer = ConnectionTimer::new(limits);
    let (reads, requests) = (timer.clone(), timer.clone());
    let stream = InspectReader::new(stream, move |_| reads.received());
    let service = service_fn(move |request| {
        let requests = requests.clone();
        requests.request_opened();
        service(request, peer).map(move |answer| {
            requests.request_answered();
            Ok::<_, Infallible>(answer)
        })
    });
    let mut connection = pin!(
        http1::Builder::new()
            .max_buf_size(BUFFER)
            // An answer is so short that copying its head and body into one buffer is cheaper than a vectored write.
            .writev(false)
            // `ConnectionTimer` applies the timeouts instead.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(stream), service)
    );
    let served = async {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    };
    tokio::select! {
        // If the whole machine was suspended, both may be ready: handle bytes that have arrived first.
        biased;
        ended = served => if let Err(error) = ended {
            debug!(%peer, %error, "connection ended");
        },
        () = timer.overdue() => debug!(%peer, "connection closed: no request within http.read_timeout or http.idle_timeout"),
    }
}
