//! Connections to the relay, with or without TLS.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

/// A connection, with or without TLS.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// What a client of the relay's certificate needs.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

impl Tls {
    /// Trusts the authority whose certificate is in this file.
    pub fn trusting(ca: &Path) -> Self {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(ca).unwrap())
            .unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self(Arc::new(config))
    }

    /// The bytes of a client hello.
    pub fn client_hello(&self) -> Vec<u8> {
        let mut connection = ClientConnection::new(Arc::clone(&self.0), server_name()).unwrap();
        let mut hello = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut hello).unwrap();
        }
        hello
    }
}

fn server_name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// Opens a connection, with TLS if there is `tls`.
pub async fn open(to: SocketAddr, tls: Option<&Tls>) -> io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    encrypt(stream, tls).await
}

/// Shakes hands if there is `tls`.
pub async fn encrypt(stream: TcpStream, tls: Option<&Tls>) -> io::Result<Box<dyn Stream>> {
    let Some(Tls(config)) = tls else {
        return Ok(Box::new(stream));
    };
    let connector = TlsConnector::from(Arc::clone(config));
    let stream = connector.connect(server_name(), stream).await?;
    Ok(Box::new(stream))
}

/// Opens a connection as attackers do: from `from`, with a receive buffer of this size if there is one. It is reset
/// when it is dropped, so that no closed connections remain in the kernel.
pub async fn open_attack(
    from: SocketAddr,
    to: SocketAddr,
    receive_buffer: Option<u32>,
) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(from)?;
    let stream = socket.connect(to).await?;
    stream.set_zero_linger()?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
