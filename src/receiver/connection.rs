//! Serves one connection: the PROXY protocol's header, the TLS handshake, then HTTP/1.1.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, copy, sink};
use tokio::time::timeout;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::client::Client;
use super::config::Config;
use super::connection_timer::ConnectionTimer;
use super::connections::{ConnectionMetrics, Connections, Place};
use super::handshakes::Handshakes;
use super::limits::Limits;
use super::listener::{Service, Trust};
use super::proxy_protocol::ProxyProtocol;

/// Maximum size of a request's head, and of each read.
const BUFFER: usize = 64 << 10;

/// The buffer in front of a connection, in bytes; only the PROXY protocol's header is read through it.
const HEADER_BUFFER: usize = 256;

/// How long the rest of a request is read, and dropped, after it was answered early. If the connection were closed at
/// once, the kernel would reset it, and the client might never see the answer. The vendor waits 2 s for it.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// What comes before HTTP on a connection.
#[derive(Debug, Clone)]
pub struct Front {
    /// The setting that limits the number of connections, for the log.
    setting: &'static str,
    /// If trusted proxies begin each connection with a header of the PROXY protocol.
    proxy_protocol: Option<Arc<ProxyProtocol>>,
    /// The TLS handshakes. None for a listener that never has any.
    handshakes: Option<Arc<Handshakes>>,
}

impl Front {
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

/// Serves a connection until it ends, or has no request for too long, or its place is needed.
pub(super) async fn serve<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    place: Arc<Place>,
    limits: Limits,
    front: Front,
    service: S,
    stop: CancellationToken,
) {
    let timer = ConnectionTimer::new(limits);
    let served = async {
        let mut stream = BufReader::with_capacity(HEADER_BUFFER, stream);
        let mut client = peer;
        if let Some(protocol) = &front.proxy_protocol
            && service.trust(peer.ip()) == Trust::Proxy
        {
            client = protocol.client(&mut stream, peer).await?;
        }
        let trust = service.trust(client.ip());
        match trust {
            Trust::Proxy => place.protect(),
            Trust::Source => {}
            Trust::None if place.count_for(client.ip()) => {}
            Trust::None => anyhow::bail!("its source has too many connections"),
        }
        let client = Arc::new(Client::new(client, Arc::clone(&place)));
        let tls = front.handshakes.as_ref();
        let tls = tls.and_then(|handshakes| Some((handshakes, handshakes.acceptor()?)));
        let Some((handshakes, acceptor)) = tls else {
            return Ok(serve_http(stream, &client, &timer, &service, &stop).await?);
        };
        // Boxed, so that a connection without TLS does not take the memory of one with it.
        let encrypted = Box::pin(async {
            let handshake = handshakes.accept(acceptor, stream, client.address(), trust);
            let stream = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                accepted = handshake => accepted?,
            };
            Ok(serve_http(stream, &client, &timer, &service, &stop).await?)
        });
        encrypted.await
    };
    tokio::select! {
        // If the whole machine was suspended, both may be ready: handle bytes that have arrived first.
        biased;
        ended = served => if let Err(error) = ended {
            debug!(%peer, %error, "connection ended");
        },
        () = timer.overdue() => debug!(%peer, "connection closed: no request within http.read_timeout or http.idle_timeout"),
        () = place.shed() => debug!(%peer, "connection closed: its place was needed"),
    }
}

/// Serves one connection that no listener has accepted.
pub async fn serve_alone<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    limits: Limits,
    front: Front,
    service: S,
) {
    let connections = Connections::new(front.setting, 1, 0, ConnectionMetrics::default());
    if let Some(place) = connections.admit().await {
        let stop = CancellationToken::new();
        serve(stream, peer, Arc::new(place), limits, front, service, stop).await;
    }
}

/// Serves HTTP/1.1.
async fn serve_http<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    client: &Arc<Client>,
    timer: &ConnectionTimer,
    service: &S,
    stop: &CancellationToken,
) -> hyper::Result<()> {
    let reads = timer.clone();
    let stream = InspectReader::new(stream, move |_| reads.received());
    let service = service_fn(|request| {
        timer.request_opened();
        let answer = service.answer(request, Arc::clone(client));
        answer.map(|answer| {
            timer.request_answered(client.is_idle_again());
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
    if client.has_unread_body() {
        let mut stream = connection.into_parts().io.into_inner();
        let _ = timeout(LINGER, copy(&mut stream, &mut sink())).await;
    }
    Ok(())
}
