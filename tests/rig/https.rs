//! A client of the vendor that speaks HTTPS.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

use super::{Connection, TIMEOUT};

pub type HttpsConnection = Connection<StreamOwned<ClientConnection, TcpStream>>;

/// Opens connections of one version of TLS.
#[derive(Clone)]
pub struct HttpsClient(Arc<ClientConfig>);

impl HttpsClient {
    /// Trusts this authority; shows a certificate if there is one. Remembers no session.
    pub fn new(
        version: &'static SupportedProtocolVersion,
        ca: &Path,
        identity: Option<(&Path, &Path)>,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        let read = |path: &Path| fs::read(path).unwrap();
        roots
            .add(CertificateDer::from_pem_slice(&read(ca)).unwrap())
            .unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(&read(cert)).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(&read(key)).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.resumption = rustls::client::Resumption::disabled();
        Self(Arc::new(config))
    }

    /// Offers only this protocol.
    pub fn with_protocol(&self, protocol: &str) -> Self {
        let mut config = ClientConfig::clone(&self.0);
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Self(Arc::new(config))
    }

    /// Connects and performs the handshake.
    pub fn connect(&self, to: SocketAddr) -> io::Result<HttpsConnection> {
        self.connect_over(TcpStream::connect(to)?)
    }

    /// Performs the handshake on this connection.
    pub fn connect_over(&self, mut stream: TcpStream) -> io::Result<HttpsConnection> {
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        stream.set_nodelay(true)?;
        let mut tls = self.hello();
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        Ok(StreamOwned::new(tls, stream).into())
    }

    /// A handshake that has not begun.
    pub fn hello(&self) -> ClientConnection {
        let name = ServerName::try_from("localhost").unwrap();
        ClientConnection::new(Arc::clone(&self.0), name).unwrap()
    }
}
