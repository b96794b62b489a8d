//! Serves one connection: the PROXY protocol's header, the TLS handshake, then HTTP/1.1.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::connection_timer::ConnectionTimer;
use super::connections::{ConnectionMetrics, ConnectionSlot, Connections};
use super::handshakes::Handshakes;
use super::limits::Limits;
use super::linger::linger;
use super::peer::Peer;
use super::proxy_protocol::ProxyProtocol;
use super::service::{Service, Trust};
use crate::receiver::Config;

/// Maximum size of a request's head, and of each read. A client gets this memory before it is judged.
const BUFFER: usize = 32 << 10;

/// The buffer in front of a connection, in bytes; only the PROXY protocol's header is read through it.
const HEADER_BUFFER: usize = 256;

/// What comes before HTTP on a connection.
#[derive(Debug, Clone)]
pub struct ConnectionSetup {
    /// The setting that limits the number of connections, for the log.
    setting: &'static str,
    /// If trusted proxies begin each connection with a header of the PROXY protocol.
    proxy_protocol: Option<Arc<ProxyProtocol>>,
    /// The TLS handshakes. None for a listener that never has any.
    handshakes: Option<Arc<Handshakes>>,
}

impl ConnectionSetup {
    /// Nothing comes before HTTP. `setting` limits the number of connections.
    #[must_use]
    pub const fn plain(setting: &'static str) -> Self {
        Self {
            setting,
            proxy_protocol: None,
            handshakes: None,
        }
    }

    /// What these settings of the listener for callbacks ask for.
    #[must_use]
    pub fn of_callbacks(config: &Config) -> Self {
        let proxy_protocol = config.proxy_protocol.then(Arc::default);
        Self {
            proxy_protocol,
            ..Self::plain("http.max_connections")
        }
    }

    /// Connections begin with one of these handshakes, as long as there is a certificate.
    #[must_use]
    pub fn with_tls(self, handshakes: Arc<Handshakes>) -> Self {
        let handshakes = Some(handshakes);
        Self { handshakes, ..self }
    }

    /// The setting that limits the number of connections.
    pub(super) const fn setting(&self) -> &'static str {
        self.setting
    }
}

/// Serves a connection until it ends, or has no request for too long, or its slot is needed.
pub(super) async fn serve<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    address: SocketAddr,
    slot: Arc<ConnectionSlot>,
    limits: Limits,
    setup: ConnectionSetup,
    service: S,
    stop: CancellationToken,
) {
    let timer = ConnectionTimer::new(limits);
    let served = async {
        let mut stream = BufReader::with_capacity(HEADER_BUFFER, stream);
        let mut client = address;
        if let Some(protocol) = &setup.proxy_protocol
            && service.trust(address.ip()) == Trust::Proxy
        {
            client = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                client = protocol.client(&mut stream, address) => client?,
            };
        }
        match service.trust(client.ip()) {
            Trust::Proxy => slot.protect(),
            Trust::Source => {}
            Trust::None if slot.count_for(client.ip()) => {}
            Trust::None => anyhow::bail!("its source has too many connections"),
        }
        let peer = Arc::new(Peer::new(client, Arc::clone(&slot)));
        let tls = setup.handshakes.as_ref();
        let tls = tls.and_then(|handshakes| Some((handshakes, handshakes.acceptor()?)));
        let Some((handshakes, acceptor)) = tls else {
            return Ok(serve_http(stream, &peer, &timer, &service, &stop).await?);
        };
        // Boxed, so that a connection without TLS does not take the memory of one with it.
        let encrypted = Box::pin(async {
            let stream = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                accepted = handshakes.accept(acceptor, stream, client, &slot) => accepted?,
            };
            Ok(serve_http(stream, &peer, &timer, &service, &stop).await?)
        });
        encrypted.await
    };
    tokio::select! {
        // If the whole machine was suspended, both may be ready: handle bytes that have arrived first.
        biased;
        ended = served => if let Err(error) = ended {
            debug!(peer = %address, %error, "connection ended");
        },
        () = timer.overdue() => debug!(
            peer = %address,
            "connection closed: no request within http.read_timeout or http.idle_timeout"
        ),
        () = slot.shed() => debug!(peer = %address, "connection closed: its slot was needed"),
    }
}

/// Serves one connection that no listener has accepted.
pub async fn serve_alone<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    address: SocketAddr,
    limits: Limits,
    setup: ConnectionSetup,
    service: S,
) {
    let connections = Connections::new(setup.setting, 1, 0, ConnectionMetrics::default());
    if let Some(slot) = connections.admit().await {
        let (slot, stop) = (Arc::new(slot), CancellationToken::new());
        serve(stream, address, slot, limits, setup, service, stop).await;
    }
}

/// Serves HTTP/1.1.
async fn serve_http<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: &Arc<Peer>,
    timer: &ConnectionTimer,
    service: &S,
    stop: &CancellationToken,
) -> hyper::Result<()> {
    let reads = timer.clone();
    let stream = InspectReader::new(stream, move |_| reads.received());
    let service = service_fn(|request| {
        timer.request_opened();
        let answer = service.answer(request, Arc::clone(peer));
        answer.map(|answer| {
            timer.request_answered(peer.is_idle_again());
            Ok::<_, Infallible>(answer)
        })
    });
    let mut connection = http1::Builder::new()
        .max_buf_size(BUFFER)
        // An answer is so short that copying its head and body into one buffer is cheaper than a vectored write.
        .writev(false)
        // `ConnectionTimer` applies the timeouts instead.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        biased;
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    }?;
    if peer.has_unread_body() {
        linger(&mut connection.into_parts().io.into_inner()).await;
    }
    Ok(())
}
