//! The TLS handshakes of the listener for callbacks.
//!
//! Anyone can begin a handshake, and stop in the middle of it. So each one has a fixed share of
//! `http.max_buffered_bytes`, and when handshakes have used up what they may take of it, the longest one is closed for
//! the next.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy, sink};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::budget::Budget;
use super::certificate_expiry::{CurrentCertificate, Expiry, ExpiryLog};
use super::connection::LINGER;
use super::listener::Trust;
use crate::setting::ServerCertificate;
use crate::telemetry::Recurrence;
use crate::upstream::Reserve;

/// How many bytes a client may send in a handshake. A hello has up to 2 KiB, and a chain of three certificates with RSA
/// keys of 4,096 bits 6 KiB. rustls itself would buffer 64 KiB.
const MAX_RECEIVED: usize = 12 << 10;

/// The memory of a handshake, in bytes. Measured: up to 30 KiB, if a client stops after [`MAX_RECEIVED`]. rustls reads into
/// a buffer that doubles up to 16 KiB, and keeps what is parsed.
const MEMORY: usize = 32 << 10;

/// How long to wait until memory is tried again, if no handshake has ended: requests free it, too.
const RETRY: Duration = Duration::from_millis(10);

const OK: &str = "ok";
const FAILED: &str = "failed";
const CLIENT_CERTIFICATE: &str = "client_certificate";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// Performs the handshakes of the connections.
#[derive(Debug)]
pub struct Handshakes {
    /// None: connections are not encrypted. Replaced when the settings are reloaded.
    certificate: CurrentCertificate,
    replaced: Notify,
    memory: Budget,
    /// Held while memory is acquired: the first in the queue makes room for itself alone.
    queue: tokio::sync::Mutex<()>,
    under_way: Mutex<UnderWay>,
    ended: Notify,
    results: Family<ResultLabels, Counter>,
    refused: Mutex<Recurrence>,
}

/// The handshakes that may be closed, all but those of trusted proxies; by their order, the longest first.
#[derive(Debug, Default)]
struct UnderWay {
    next: u64,
    by_order: BTreeMap<u64, CancellationToken>,
}

/// A handshake that is under way. Dropping it frees its memory and counts its result.
struct Handshake<'a> {
    handshakes: &'a Handshakes,
    order: u64,
    closed: CancellationToken,
    memory: Option<Reserve>,
    result: &'static str,
}

impl Handshakes {
    /// Uses memory of `budget`. Registers the metrics.
    pub(super) fn new(budget: Budget, registry: &mut Registry) -> Self {
        let certificate = CurrentCertificate::default();
        registry.register_collector(Box::new(Expiry(Arc::clone(&certificate))));
        let results = Family::<ResultLabels, Counter>::default();
        for result in [OK, FAILED, CLIENT_CERTIFICATE] {
            let _ = results.get_or_create(&ResultLabels { result });
        }
        registry.register(
            "http_tls_handshakes",
            "TLS handshakes by result: `client_certificate` is a client without a valid one, with `http.tls.client_ca`",
            results.clone(),
        );
        Self {
            certificate,
            replaced: Notify::new(),
            memory: budget,
            queue: tokio::sync::Mutex::default(),
            under_way: Mutex::default(),
            ended: Notify::new(),
            results,
            refused: Mutex::default(),
        }
    }

    /// The connections that are accepted from now on use this certificate, or no TLS.
    pub fn set(&self, certificate: Option<ServerCertificate>) {
        let current = self.certificate.write();
        *current.unwrap_or_else(PoisonError::into_inner) = certificate;
        self.replaced.notify_one();
    }

    /// Logs when the certificate expires soon or has expired, for as long as the relay runs.
    pub async fn watch(&self) -> Infallible {
        loop {
            let mut log = ExpiryLog::default();
            let replaced = self.replaced.notified();
            let check = async {
                while let Some(current) = self.current() {
                    let wait = log.check(&current, Timestamp::now(), Instant::now());
                    sleep(wait).await;
                }
                // Nothing to check without TLS.
                pending::<()>().await;
            };
            tokio::select! {
                // First, so that a certificate is not logged twice.
                biased;
                () = replaced => {}
                () = check => {}
            }
        }
    }

    fn current(&self) -> Option<ServerCertificate> {
        let current = self.certificate.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What handshakes use now. None without TLS.
    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.current()
            .map(|current| TlsAcceptor::from(current.config))
    }

    /// Performs the handshake of a client, and counts its result. Waits for memory if too many are under way. Dropping the
    /// future counts a failed handshake.
    ///
    /// # Errors
    /// Says why the handshake failed.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        acceptor: TlsAcceptor,
        stream: S,
        client: SocketAddr,
        trust: Trust,
    ) -> anyhow::Result<TlsStream<impl AsyncRead + AsyncWrite + Unpin + use<S>>> {
        let mut handshake = self.begin(trust).await;
        let too_long = CancellationToken::new();
        let (mut received, too_much) = (0, too_long.clone());
        let stream = InspectReader::new(stream, move |bytes: &[u8]| {
            received += bytes.len();
            if received > MAX_RECEIVED {
                too_much.cancel();
            }
        });
        let accepted = tokio::select! {
            biased;
            () = handshake.closed.cancelled() => bail!("TLS handshake closed: its memory was needed"),
            accepted = acceptor.accept(stream).into_fallible() => accepted,
            () = too_long.cancelled() => bail!("TLS handshake closed: more than {MAX_RECEIVED} bytes"),
        };
        let (error, mut stream) = match accepted {
            Ok(stream) => {
                handshake.result = OK;
                return Ok(stream);
            }
            Err(failed) => failed,
        };
        if is_of_client_certificate(&error) {
            handshake.result = CLIENT_CERTIFICATE;
            self.log_refused(client, &error);
        }
        drop(handshake);
        // As after an answer to a request that was not read to the end: let the client read why.
        let _ = stream.shutdown().await;
        let _ = timeout(LINGER, copy(&mut stream, &mut sink())).await;
        bail!("TLS handshake failed: {error}")
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is memory for a handshake.
    async fn begin(&self, trust: Trust) -> Handshake<'_> {
        let mut handshake = Handshake {
            handshakes: self,
            order: u64::MAX,
            closed: CancellationToken::new(),
            memory: None,
            result: FAILED,
        };
        let _first = self.queue.lock().await;
        handshake.memory = Some(loop {
            if let Some(memory) = self.memory.reserve_new(MEMORY) {
                break memory;
            }
            self.memory.log_used_up();
            if let Some((_, longest)) = self.under_way().by_order.pop_first() {
                longest.cancel();
            }
            let _ = timeout(RETRY, self.ended.notified()).await;
        });
        if trust != Trust::Proxy {
            let mut under_way = self.under_way();
            handshake.order = under_way.next;
            under_way.next += 1;
            let closed = handshake.closed.clone();
            under_way.by_order.insert(handshake.order, closed);
        }
        handshake
    }

    fn log_refused(&self, client: SocketAddr, reason: &io::Error) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((lasted, times)) = refused.occurred(Instant::now()) {
            warn!(
                code = "client_certificate_refused", %client, %reason, times, seconds = lasted.as_secs(),
                "clients were refused because they have no valid certificate of http.tls.client_ca; if one is the \
                 vendor's or your proxy, correct its certificate or http.tls.client_ca"
            );
        }
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        let handshakes = self.handshakes;
        handshakes.under_way().by_order.remove(&self.order);
        let result = self.result;
        handshakes
            .results
            .get_or_create(&ResultLabels { result })
            .inc();
        self.memory = None;
        handshakes.ended.notify_one();
    }
}

fn is_of_client_certificate(error: &io::Error) -> bool {
    use rustls::Error::{InvalidCertificate, NoCertificatesPresented};
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(NoCertificatesPresented | InvalidCertificate(_)))
}
