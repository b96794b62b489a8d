//! `recall-relay ready`: asks the running relay whether it is ready.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::admin::Config;

/// How long to wait for the answer. Container health checks wait 30 s by default.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum size of an answer: the metrics are less than a tenth of it.
const ANSWER_BYTES: usize = 1 << 20;

pub(super) fn run(config: &Config) -> anyhow::Result<()> {
    let address = reachable(config.listen);
    let asked =
        super::runtime()?.block_on(async { timeout(TIMEOUT, get(address, "/readyz")).await });
    let (status, body) = asked
        .with_context(|| {
            format!(
                "{address} did not answer within {} s (admin.listen); see the log of the relay",
                TIMEOUT.as_secs()
            )
        })?
        .with_context(|| {
            format!("could not get /readyz from {address} (admin.listen; is the relay running?)")
        })?;
    if status != StatusCode::OK {
        bail!("not ready: {body}");
    }
    Ok(())
}

/// The address to connect to, for an address that the relay listens on.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Gets a page of the listener for operators: its status and its body.
pub(super) async fn get(
    address: SocketAddr,
    path: &'static str,
) -> anyhow::Result<(StatusCode, String)> {
    let stream = TcpStream::connect(address).await?;
    let (mut requests, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = requests.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES)
            .collect()
            .await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        drop(requests);
        anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    let (answer, _) = tokio::join!(exchange, connection);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcard_addresses_are_reached_on_loopback() {
        let ask = |listen: &str| reachable(listen.parse().unwrap()).to_string();
        assert_eq!(ask("0.0.0.0:8081"), "127.0.0.1:8081");
        assert_eq!(ask("[::]:8081"), "[::1]:8081");
        assert_eq!(ask("192.0.2.1:1"), "192.0.2.1:1");
    }
}
