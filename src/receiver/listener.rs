//! Accepting connections and serving HTTP/1.1 on them, within limits.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::connection_timer::ConnectionTimer;
use crate::setting::Timeout;

/// Bytes of a request's head, and of each read.
const BUFFER: usize = 64 << 10;

/// How long accepting pauses when the system has no more to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {address}")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// What every connection is held to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections open at once.
    pub connections: usize,
    /// How long a request's head may take to arrive; the first one's, from the connection's beginning.
    pub read_timeout: Timeout,
    /// How long a connection may stay open without a further request.
    pub idle_timeout: Timeout,
}

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    limits: Limits,
}

impl Listener {
    /// Binds a socket; nothing is accepted yet.
    ///
    /// # Errors
    /// Fails where the address cannot be listened on.
    pub async fn bind(address: SocketAddr, limits: Limits) -> Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self {
            socket,
            address,
            limits,
        })
    }

    /// The address it is bound to.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves connections until `stop`; then closes the socket, lets open requests finish, and returns
    /// when the last connection has ended. Dropping the future ends them all.
    pub async fn serve<S, F>(self, service: S, stop: CancellationToken)
    where
        S: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let mut connections = JoinSet::new();
        let permits = Arc::new(Semaphore::new(
            self.limits.connections.clamp(1, Semaphore::MAX_PERMITS),
        ));
        let mut failing = false;
        loop {
            // Taken before accepting: a full server leaves connections in the kernel's backlog.
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
                        if !std::mem::replace(&mut failing, true) {
                            warn!(address = %self.address, %error, "no connections can be accepted");
                        }
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            if std::mem::take(&mut failing) {
                info!(address = %self.address, "connections are accepted again");
            }
            let _ = stream.set_nodelay(true);
            connections.spawn(serve_connection(
                stream,
                peer,
                self.limits,
                service.clone(),
                stop.clone(),
                permit,
            ));
            while connections.try_join_next().is_some() {}
        }
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
    _permit: OwnedSemaphorePermit,
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
            // An answer is shorter than what it takes to send its head and body in two pieces.
            .writev(false)
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
        // If the whole machine was paused, both may be ready: bytes that have arrived are read first.
        biased;
        ended = served => if let Err(error) = ended {
            debug!(%peer, %error, "connection ended");
        },
        () = timer.overdue() => debug!(%peer, "connection closed: no request within the time limit"),
    }
}
