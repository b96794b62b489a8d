//! Reaches a server: resolves its name, connects, and performs the TLS handshake.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, Error as TlsError};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificates::{Validity, days_left, listed};
use super::report::{Area, DISK_TIMEOUT};
use crate::setting::{CertificateFacts, ClientTls, system_authorities};

/// How long each step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(3);

/// With TLS 1.3 a server refuses a client's certificate only after the handshake. How long to wait for that.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(300);

/// A server that was reached.
#[derive(Debug)]
pub(super) struct ReachedServer {
    address: SocketAddr,
    /// With TLS.
    certificate: Option<CertificateFacts>,
}

/// Why a server cannot be reached, and what to do.
#[derive(Debug)]
pub(super) struct Unreachable {
    pub(super) reason: String,
    pub(super) action: String,
}

/// How a connection is encrypted.
#[derive(Debug, Clone)]
pub(super) struct ServerTlsCheck {
    pub(super) config: Arc<ClientConfig>,
    /// The setting or option that names authorities to trust, for people.
    ca_setting: String,
}

impl Unreachable {
    fn new(reason: impl Into<String>, action: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            action: action.into(),
        }
    }
}

/// The TLS of a connection that the relay opens with these files. `prefix`, followed by `ca`, `cert` or `key`, names a
/// file's setting or option.
///
/// # Errors
/// Names the setting of the file that cannot be used.
pub(super) async fn client_tls(files: ClientTls, prefix: &str) -> Result<ServerTlsCheck, String> {
    let set = [
        ("ca", &files.ca),
        ("cert", &files.cert),
        ("key", &files.key),
    ];
    let set = set.into_iter().filter(|(_, file)| file.is_some());
    let set: Vec<_> = set.map(|(name, _)| name).collect();
    let reading = spawn_blocking(move || files.client_config(system_authorities()));
    let Ok(config) = timeout(DISK_TIMEOUT, reading).await else {
        let (set, seconds) = (set.join(" or "), DISK_TIMEOUT.as_secs());
        return Err(format!(
            "{prefix}{set} could not be read within {seconds} s"
        ));
    };
    let named = |error: &dyn fmt::Display| format!("{prefix}{error}");
    let config = config.map_err(|error| named(&error))?;
    let config = config.map_err(|error| named(&error))?;
    Ok(ServerTlsCheck {
        config: Arc::new(config),
        ca_setting: format!("{prefix}ca"),
    })
}

/// Reaches a server, and closes the connection. With `tls` it also performs the handshake.
pub(super) async fn reach(
    host: &str,
    port: u16,
    tls: Option<&ServerTlsCheck>,
) -> Result<ReachedServer, Unreachable> {
    let addresses = resolve(host, port).await?;
    let (address, stream) = connect(&addresses).await?;
    let certificate = match tls {
        None => None,
        Some(tls) => Some(handshake(host, stream, tls).await?),
    };
    Ok(ReachedServer {
        address,
        certificate,
    })
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Unreachable> {
    let action = "correct the name, or the DNS of this host";
    match timeout(STEP_TIMEOUT, lookup_host((host, port))).await {
        Ok(Ok(found)) => {
            let found: Vec<_> = found.collect();
            if found.is_empty() {
                return Err(Unreachable::new("its name has no address", action));
            }
            Ok(found)
        }
        Ok(Err(error)) => {
            let reason = format!("its name cannot be resolved: {error}");
            Err(Unreachable::new(reason, action))
        }
        Err(_) => Err(Unreachable::new(
            took_too_long("resolving its name"),
            action,
        )),
    }
}

/// Connects to the first address that accepts it.
async fn connect(addresses: &[SocketAddr]) -> Result<(SocketAddr, TcpStream), Unreachable> {
    let connecting = async {
        let mut refused = Vec::new();
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok((*address, stream)),
                Err(error) => refused.push(format!("{address}: {error}")),
            }
        }
        Err(refused.join("; "))
    };
    let action = "start it, correct host or port, or open the firewall";
    match timeout(STEP_TIMEOUT, connecting).await {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(refused)) => {
            let reason = format!("cannot connect to {refused}");
            Err(Unreachable::new(reason, action))
        }
        Err(_) => Err(Unreachable::new(took_too_long("connecting"), action)),
    }
}

async fn handshake(
    host: &str,
    stream: TcpStream,
    tls: &ServerTlsCheck,
) -> Result<CertificateFacts, Unreachable> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| Unreachable::new(format!("TLS: {error}"), "correct the host's name"))?;
    let connector = TlsConnector::from(Arc::clone(&tls.config));
    let shaken = timeout(STEP_TIMEOUT, connector.connect(name, stream)).await;
    let Ok(shaken) = shaken else {
        let reason = took_too_long("the TLS handshake");
        let action = "restart the server, or correct the port: it may not speak TLS";
        return Err(Unreachable::new(reason, action));
    };
    let mut stream = shaken.map_err(|error| tls_failed(&error, tls))?;
    refused_later(&mut stream)
        .await
        .map_err(|error| tls_failed(&error, tls))?;
    let (_, session) = stream.get_ref();
    let first = session.peer_certificates().and_then(<[_]>::first);
    let action = "replace the server's certificate";
    let first = first.ok_or_else(|| Unreachable::new("it shows no certificate", action))?;
    CertificateFacts::of(first)
        .map_err(|problem| Unreachable::new(format!("its certificate {problem}"), action))
}

/// The error if the server ends the connection at once.
async fn refused_later(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    match timeout(REFUSAL_TIMEOUT, stream.read(&mut [0])).await {
        Ok(Err(error)) => Err(error),
        // A server may greet, or close an idle connection.
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

fn tls_failed(error: &io::Error, tls: &ServerTlsCheck) -> Unreachable {
    let ca = &tls.ca_setting;
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    let action = match cause {
        Some(TlsError::InvalidCertificate(problem)) => match problem {
            CertificateError::UnknownIssuer => {
                format!(
                    "use a certificate of a public authority, or set {ca} to a PEM file with the server's authority"
                )
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "renew the server's certificate".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "use a host name that the server's certificate has, or replace that".to_owned()
            }
            _ => "replace the server's certificate".to_owned(),
        },
        Some(TlsError::InvalidMessage(_)) => {
            "correct the port: this one does not speak TLS".to_owned()
        }
        Some(TlsError::AlertReceived(_)) => {
            "set the client's certificate and key that the server asks for".to_owned()
        }
        _ => "correct the port, or see the server's log".to_owned(),
    };
    Unreachable::new(format!("TLS: {error}"), action)
}

fn took_too_long(step: &str) -> String {
    format!("{step} took longer than {} s", STEP_TIMEOUT.as_secs())
}

impl fmt::Display for ReachedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reached at {}", self.address)?;
        match &self.certificate {
            Some(facts) => write!(
                f,
                "; its certificate for {} is valid until {}",
                listed(&facts.names),
                facts.not_after
            ),
            None => Ok(()),
        }
    }
}

impl ReachedServer {
    /// Reports that it was reached, or that its certificate expires soon.
    pub(super) async fn report(&self, area: &Area, subject: &str) {
        match self.certificate.as_ref().map(Validity::of) {
            Some(Validity::ExpiresSoon(left)) => {
                let text = format!("{self}, for {} more", days_left(left));
                area.warning(subject, text, "renew the server's certificate")
                    .await;
            }
            _ => area.ok(subject, self.to_string()).await,
        }
    }
}
