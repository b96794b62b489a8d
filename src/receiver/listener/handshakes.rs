//! The TLS handshakes of the listener for callbacks.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use anyhow::bail;
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::certificate_expiry::{CurrentCertificate, Expiry, ExpiryLog};
use super::connections::ConnectionSlot;
use super::linger::linger;
use crate::receiver::Config;
use crate::receiver::budget::Budget;
use crate::setting::{ServerCertificate, Size};
use crate::telemetry::Recurrence;

/// How many bytes a client may send in a handshake. A hello has up to 2 KiB, and a chain of three certificates with RSA
/// keys of 4,096 bits 6 KiB. rustls itself would buffer 64 KiB.
const MAX_RECEIVED: usize = 12 << 10;

/// The memory of TLS for one connection, in bytes. Measured: 15 KiB if a client stops after its hello, and 12 KiB after
/// the handshake; up to 30 KiB if it stops after [`MAX_RECEIVED`].
const MEMORY: usize = 16 << 10;

/// The part of `http.max_buffered_bytes` that TLS may take beside it.
const PART: u64 = 4;

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
    results: Family<ResultLabels, Counter>,
    refused: Recurrence,
}

/// Counts the result of a handshake when it is dropped.
struct CountedResult<'a> {
    results: &'a Family<ResultLabels, Counter>,
    result: &'static str,
}

impl Handshakes {
    /// Registers the metrics.
    #[must_use]
    pub fn new(config: &Config, registry: &mut Registry) -> Self {
        let memory = Size(config.max_buffered_bytes.0 / PART);
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
        let memory = Budget::new("a quarter of http.max_buffered_bytes", memory);
        registry.register_with_unit(
            "http_tls",
            "Bytes of a quarter of `http.max_buffered_bytes` that TLS connections hold until they bring an \
             authenticated request",
            Unit::Bytes,
            memory.used_bytes(),
        );
        Self {
            certificate,
            replaced: Notify::new(),
            memory,
            results,
            refused: Recurrence::default(),
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

    /// The certificate that handshakes use now. None without TLS.
    #[must_use]
    pub fn current(&self) -> Option<ServerCertificate> {
        let current = self.certificate.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What handshakes use now. None without TLS.
    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.current()
            .map(|current| TlsAcceptor::from(current.config))
    }

    /// Performs the handshake of a client, and counts its result. Waits for memory if others have it. Dropping the
    /// future counts a failed handshake.
    ///
    /// # Errors
    /// Says why the handshake failed.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        acceptor: TlsAcceptor,
        stream: S,
        client: SocketAddr,
        slot: &ConnectionSlot,
    ) -> anyhow::Result<TlsStream<impl AsyncRead + AsyncWrite + Unpin + use<S>>> {
        let mut counted = CountedResult {
            results: &self.results,
            result: FAILED,
        };
        slot.hold_memory(&self.memory, MEMORY).await;
        let too_long = CancellationToken::new();
        let (mut received, mut too_much) = (0, Some(too_long.clone()));
        let stream = InspectReader::new(stream, move |bytes: &[u8]| {
            received += bytes.len();
            if received > MAX_RECEIVED
                && let Some(too_much) = too_much.take()
            {
                too_much.cancel();
            }
        });
        let accepted = tokio::select! {
            biased;
            accepted = acceptor.accept(stream).into_fallible() => accepted,
            () = too_long.cancelled() => bail!("TLS handshake closed: more than {MAX_RECEIVED} bytes"),
        };
        let (error, mut stream) = match accepted {
            Ok(stream) => {
                counted.result = OK;
                return Ok(stream);
            }
            Err(failed) => failed,
        };
        if is_of_client_certificate(&error) {
            counted.result = CLIENT_CERTIFICATE;
            self.log_refused(client, &error);
        }
        drop(counted);
        // As after an answer to a request that was not read to the end: let the client read why.
        let _ = stream.shutdown().await;
        linger(&mut stream).await;
        bail!("TLS handshake failed: {error}")
    }

    fn log_refused(&self, client: SocketAddr, reason: &io::Error) {
        if let Some((lasted, times)) = self.refused.occurred(Instant::now()) {
            warn!(
                code = "client_certificate_refused", %client, %reason, times, seconds = lasted.as_secs(),
                "clients were refused because they have no valid certificate of http.tls.client_ca; if one is the \
                 vendor's or your proxy, correct its certificate or http.tls.client_ca; if not, there is nothing to do"
            );
        }
    }
}

impl Drop for CountedResult<'_> {
    fn drop(&mut self) {
        let result = self.result;
        self.results.get_or_create(&ResultLabels { result }).inc();
    }
}

fn is_of_client_certificate(error: &io::Error) -> bool {
    use rustls::Error::{InvalidCertificate, NoCertificatesPresented};
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(NoCertificatesPresented | InvalidCertificate(_)))
}
