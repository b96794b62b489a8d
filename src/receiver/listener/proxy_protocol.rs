//! The PROXY protocol: a header with which a proxy in front begins a connection to tell the client's address.
//!
//! The protocol is described in `doc/proxy-protocol.txt` of `HAProxy`.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use ppp::{HeaderResult, PartialResult as _, v1, v2};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};
use tracing::warn;

use crate::telemetry::Recurrence;

/// The largest header. One with both addresses has 52 bytes; the rest is what proxies add about TLS and themselves.
const MAX_HEADER_BYTES: usize = 2048;

/// The longest header of version 1, which is a line of text.
const MAX_LINE_BYTES: usize = 107;

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    /// The proxy closed the connection first, as health checks do.
    #[error("connection was closed before the PROXY protocol's header")]
    Closed,
    #[error("connection failed before the PROXY protocol's header: {0}")]
    Broken(#[from] io::Error),
    /// Something else came.
    #[error("connection does not begin with a header of the PROXY protocol")]
    Invalid,
}

/// Reads headers of trusted proxies, and logs those that are not valid.
#[derive(Debug, Default)]
pub(super) struct ProxyProtocol {
    invalid: Recurrence,
}

impl ProxyProtocol {
    /// Reads the header that begins a connection of `proxy`. Returns the address of the client, or that of the proxy if
    /// it speaks for itself. Reads nothing that follows the header.
    pub(super) async fn client<R: AsyncBufRead + Unpin>(
        &self,
        stream: &mut R,
        proxy: SocketAddr,
    ) -> Result<SocketAddr, HeaderError> {
        let client = read(stream).await;
        if let Err(HeaderError::Invalid) = client
            && let Some((lasted, times)) = self.invalid.occurred(Instant::now())
        {
            warn!(
                code = "proxy_header_invalid", proxy = %proxy.ip(), times, seconds = lasted.as_secs(),
                "connections of a trusted proxy were closed because they do not begin with a header of the PROXY \
                 protocol, and callbacks on them are lost; have the proxy send it, or unset http.proxy_protocol"
            );
        }
        Ok(client?.unwrap_or(proxy))
    }
}

async fn read<R: AsyncBufRead + Unpin>(stream: &mut R) -> Result<Option<SocketAddr>, HeaderError> {
    let mut header = Vec::new();
    loop {
        let bytes = stream.fill_buf().await?;
        if bytes.is_empty() {
            return Err(HeaderError::Closed);
        }
        let (before, read) = (header.len(), bytes.len());
        header.extend_from_slice(bytes);
        let parsed = HeaderResult::parse(&header);
        if is_incomplete(&header, &parsed) && header.len() < MAX_HEADER_BYTES {
            stream.consume(read);
            continue;
        }
        let (length, client) = source(&parsed).ok_or(HeaderError::Invalid)?;
        stream.consume(length - before);
        return Ok(client);
    }
}

/// Whether more bytes could complete the header.
fn is_incomplete(header: &[u8], parsed: &HeaderResult<'_>) -> bool {
    // To `ppp`, a line that ends within an address is invalid.
    let is_line = header[0] == b'P' && header.len() < MAX_LINE_BYTES && !header.contains(&b'\n');
    is_line || parsed.is_incomplete()
}

/// The length of a header, and the address that it tells. None if it is not valid.
fn source(parsed: &HeaderResult<'_>) -> Option<(usize, Option<SocketAddr>)> {
    let parsed = match parsed {
        HeaderResult::V1(header) => {
            let header = header.as_ref().ok()?;
            let client = match &header.addresses {
                v1::Addresses::Unknown => None,
                v1::Addresses::Tcp4(addresses) => {
                    Some((addresses.source_address, addresses.source_port).into())
                }
                v1::Addresses::Tcp6(addresses) => {
                    Some((addresses.source_address, addresses.source_port).into())
                }
            };
            (header.header.len(), client)
        }
        HeaderResult::V2(header) => {
            let header = header.as_ref().ok()?;
            let client = match (header.command, &header.addresses) {
                (v2::Command::Proxy, v2::Addresses::IPv4(addresses)) => {
                    Some((addresses.source_address, addresses.source_port).into())
                }
                (v2::Command::Proxy, v2::Addresses::IPv6(addresses)) => {
                    Some((addresses.source_address, addresses.source_port).into())
                }
                _ => None,
            };
            (header.len(), client)
        }
    };
    Some(parsed)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, BufReader};

    use super::*;

    const PROXY: &str = "192.0.2.1:9";

    /// The fixed part of a binary header: signature, command, family and length.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let signature = b"\r\n\r\n\0\r\nQUIT\n";
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&signature[..], &[command, family], &length, rest].concat()
    }

    /// Reads a header at most `size` bytes at a time. Returns the client, and what follows the header.
    async fn read_in_pieces(bytes: &[u8], size: usize) -> Result<(String, Vec<u8>), HeaderError> {
        let mut stream = BufReader::with_capacity(size, bytes);
        let protocol = ProxyProtocol::default();
        let client = protocol.client(&mut stream, PROXY.parse().unwrap()).await?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        Ok((client.to_string(), rest))
    }

    #[tokio::test]
    async fn a_header_is_read_and_nothing_else() {
        let v4 = [203, 0, 113, 7, 10, 0, 0, 1, 0xc8, 0x22, 0x1f, 0x90];
        let tls = [&v4[..], &[0x20, 0, 5, 1, 0, 0, 0, 0]].concat();
        let v6 = [&[0x20; 16][..], &[0; 16], &[0, 80, 0, 81]].concat();
        for (header, client) in [
            (
                b"PROXY TCP4 203.0.113.7 10.0.0.1 51234 8080\r\n".to_vec(),
                "203.0.113.7:51234",
            ),
            (
                b"PROXY TCP6 2001:db8::7 2001:db8::1 51234 8080\r\n".to_vec(),
                "[2001:db8::7]:51234",
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), PROXY),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), PROXY),
            (binary(0x21, 0x11, &v4), "203.0.113.7:51234"),
            (binary(0x21, 0x11, &tls), "203.0.113.7:51234"),
            (
                binary(0x21, 0x21, &v6),
                "[2020:2020:2020:2020:2020:2020:2020:2020]:80",
            ),
            // LOCAL: the proxy's own health check.
            (binary(0x20, 0x00, &[]), PROXY),
            (binary(0x20, 0x11, &v4), PROXY),
            (binary(0x21, 0x31, &[0; 216]), PROXY),
        ] {
            let request = b"POST / HTTP/1.1\r\n\r\n";
            let bytes = [&header[..], request].concat();
            for size in [1, 7, 16, 64, 4096] {
                let (read, rest) = read_in_pieces(&bytes, size).await.unwrap();
                assert_eq!(read, client, "{size}");
                assert_eq!(rest, request, "{size} {client}");
            }
        }
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        for bytes in [
            b"POST / HTTP/1.1\r\n\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 10.0.0.1 51234\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::7 10.0.0.1 51234 8080\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 10.0.0.1 51234 80800\r\n".to_vec(),
            format!("PROXY UNKNOWN {}", " ".repeat(200)).into_bytes(),
            binary(0x11, 0x11, &[0; 12]),
            binary(0x2f, 0x11, &[0; 12]),
            binary(0x21, 0x11, &[0; 11]),
            // Endless.
            binary(0x21, 0x11, &vec![0; 60_000]),
            vec![0x16, 3, 1, 2, 0],
        ] {
            for size in [1, 64] {
                let read = read_in_pieces(&bytes, size).await;
                assert!(matches!(read, Err(HeaderError::Invalid)), "{read:?}");
            }
        }
        for bytes in [&b""[..], b"PROX", b"\r\n\r\n", b"PROXY TCP4 203."] {
            let read = read_in_pieces(bytes, 64).await;
            assert!(matches!(read, Err(HeaderError::Closed)), "{read:?}");
        }
    }
}
