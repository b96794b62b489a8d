//! From a socket to requests: accepts connections and serves HTTP/1.1 on them, within limits.

mod certificate_expiry;
mod connection;
mod connection_timer;
mod connections;
mod handshakes;
mod limits;
mod linger;
mod peer;
mod proxy_protocol;
mod service;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub use self::connection::{ConnectionSetup, serve_alone};
use self::connections::{ConnectionMetrics, Connections};
pub use self::handshakes::Handshakes;
pub use self::limits::Limits;
pub use self::peer::Peer;
pub use self::service::{Service, Trust};
use crate::telemetry::Reminder;

/// How many connections may wait in the kernel before they are accepted. The kernel takes less if its own limit is
/// lower (`net.core.somaxconn`).
const BACKLOG: u32 = 1024;

/// How long to pause when the system is out of resources for new connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections of a passed socket stay open after the last one was accepted: for some, the request or the TLS
/// handshake is still on its way.
const LAST_REQUEST: Duration = Duration::from_millis(500);

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
    is_passed: bool,
    address: SocketAddr,
    limits: Limits,
    setup: ConnectionSetup,
    metrics: ConnectionMetrics,
}

impl Listener {
    /// Binds a socket, or takes one that listens already: the process that `passed` it keeps it open. Does not accept
    /// connections yet.
    ///
    /// # Errors
    /// Fails if the address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        passed: Option<std::net::TcpListener>,
        limits: Limits,
        setup: ConnectionSetup,
    ) -> Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let is_passed = passed.is_some();
        let socket = passed.map_or_else(|| listen(address), adopt);
        let socket = socket.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self {
            socket,
            is_passed,
            address,
            limits,
            setup,
            metrics: ConnectionMetrics::default(),
        })
    }

    /// The address that the socket is bound to.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether another process keeps the socket open, so that connections wait in it when this process has stopped.
    #[must_use]
    pub const fn is_passed(&self) -> bool {
        self.is_passed
    }

    /// Registers the metrics of its connections.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.metrics.register(registry);
    }

    /// Serves connections until `stop` is cancelled. Then closes the socket, lets open requests finish, and returns
    /// when the last connection has ended. Connections of a passed socket stay open for half a second more, because a
    /// request may still be on its way. Dropping the future closes all connections.
    pub async fn serve<S: Service>(self, service: S, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        let connections = Connections::new(
            self.setup.setting(),
            self.limits.connections,
            self.limits.connections_per_source,
            self.metrics.clone(),
        );
        // The next process will not see connections that were accepted here. So connections of a passed socket are
        // closed only after a request that is on its way has had time to arrive.
        let close = if self.is_passed {
            CancellationToken::new()
        } else {
            stop.clone()
        };
        let mut failing: Option<Reminder> = None;
        loop {
            let (stream, peer) = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = self.accept(&mut failing) => match accepted {
                    Some(accepted) => accepted,
                    None => continue,
                },
            };
            // While none can be admitted, further ones stay in the kernel's backlog.
            let slot = tokio::select! {
                () = close.cancelled() => break,
                Some(slot) = connections.admit() => slot,
            };
            tasks.spawn(connection::serve(
                stream,
                peer,
                Arc::new(slot),
                self.limits,
                self.setup.clone(),
                service.clone(),
                close.clone(),
            ));
            // Remove finished tasks, so that the set does not grow.
            while tasks.try_join_next().is_some() {}
        }
        // Refuse new connections while the open ones finish; those to a passed socket wait for the next process.
        drop(self.socket);
        if self.is_passed {
            let all = async { while tasks.join_next().await.is_some() {} };
            let _ = timeout(LAST_REQUEST, all).await;
            close.cancel();
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Accepts a connection. None if that failed.
    async fn accept(&self, failing: &mut Option<Reminder>) -> Option<(TcpStream, SocketAddr)> {
        match self.socket.accept().await {
            Ok((stream, peer)) => {
                if failing.take().is_some() {
                    info!(
                        code = "accept_recovered", address = %self.address,
                        "connections are accepted again"
                    );
                }
                // Answers are small: do not wait for more data to send (Nagle).
                let _ = stream.set_nodelay(true);
                Some((stream, peer))
            }
            Err(error) if is_of_one_connection(&error) => None,
            Err(error) => {
                let now = Instant::now();
                let reminder = failing.get_or_insert_with(|| Reminder::new(now));
                if let Some(lasted) = reminder.due_for(&error.to_string(), now) {
                    error!(
                        code = "accept_failed", address = %self.address, %error,
                        seconds = lasted.as_secs(),
                        "connections cannot be accepted, and callbacks that wait longer than 2 s are lost; retrying; raise \
                         the limit of open files, or free memory"
                    );
                }
                sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }
}

/// Prepares a socket that listens already for the runtime.
fn adopt(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // A new start must not wait for the connections of the last one.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
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
