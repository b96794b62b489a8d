//! `http.proxy_protocol`, with a real `HAProxy` in front.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod rig;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rcgen::ExtendedKeyUsagePurpose;
use rig::{
    Answer, Authority, Connection, HttpsClient, Setup, connect_from, encode, free_port, recall,
    recall_query, start_haproxy, until,
};
use rustls::version::TLS13;

/// The address that the relay accepts recalls from, and others.
const VENDOR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const PROXY: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A header that tells that the vendor is the client.
const HEADER: &str = "PROXY TCP4 127.0.0.2 127.0.0.1 40000 8080\r\n";

fn setup() -> Setup {
    Setup::new()
        .set("RECALL_HTTP__PROXY_PROTOCOL", "true")
        .set("RECALL_AUTH__TRUSTED_PROXIES", &PROXY.to_string())
        .set("RECALL_AUTH__ALLOWED_SOURCES", &VENDOR.to_string())
}

fn request(number: u64) -> Vec<u8> {
    let target = format!("/?{}", recall_query());
    encode("POST", &target, recall("g", number).as_bytes())
}

/// A request with further headers, each with its line break.
fn request_with(number: u64, headers: &str) -> Vec<u8> {
    let body = recall("g", number);
    let (query, length) = (recall_query(), body.len());
    format!("POST /?{query} HTTP/1.1\r\nHost: r\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
        .into()
}

fn post(from: Ipv4Addr, to: SocketAddr, bytes: &[u8]) -> Answer {
    let mut connection = Connection::from(connect_from(from, to));
    connection.send(bytes).unwrap();
    connection.answer().unwrap()
}

/// What the relay answers to these bytes before it closes the connection.
fn answer_and_close(from: Ipv4Addr, to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect_from(from, to);
    stream.write_all(bytes).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn the_relay_sees_the_address_of_the_client_in_both_versions() {
    let setup = setup();
    let relay = setup.start();
    let mut number = 0;
    for version in ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl"] {
        let haproxy = HaProxy::start(setup.folder(), relay.callbacks, version);
        let answer = post(STRANGER, haproxy.address, &request(99));
        assert_eq!(answer.status, 403, "{version} {answer:?}");
        assert!(answer.text().contains("auth.allowed_sources"), "{answer:?}");
        // HAProxy passes on what the client sends, and so also a claim to be the vendor.
        let claimed = format!("X-Forwarded-For: {VENDOR}\r\n");
        let answer = post(STRANGER, haproxy.address, &request_with(98, &claimed));
        assert_eq!(answer.status, 403, "{version} {answer:?}");
        assert!(answer.text().contains("auth.allowed_sources"), "{answer:?}");
        // The header comes once, and holds for all requests of a connection.
        let mut kept = Connection::from(connect_from(VENDOR, haproxy.address));
        for _ in 0..3 {
            number += 1;
            kept.send(&request(number)).unwrap();
            assert!(kept.answer().unwrap().is_ok(), "{version}");
        }
        haproxy.until_checked();
    }
    let events = relay.events(9);
    assert_eq!(events.len(), 9);
    assert_eq!(relay.log_entry("proxy_header_invalid"), None);
    relay.stop();
}

#[test]
fn a_header_is_expected_of_trusted_proxies_and_of_nobody_else() {
    let relay = setup().start();
    let with_header = [HEADER.as_bytes(), &request(1)].concat();
    assert!(post(PROXY, relay.callbacks, &with_header).is_ok());
    let answer = answer_and_close(PROXY, relay.callbacks, &request(2));
    assert_eq!(answer, "");
    let logged = until("a WARN", || relay.log_entry("proxy_header_invalid"));
    assert_eq!(logged["proxy"], "127.0.0.1", "{logged}");

    let answer = answer_and_close(VENDOR, relay.callbacks, &with_header);
    assert!(!answer.contains("200 OK"), "{answer}");
    assert!(post(VENDOR, relay.callbacks, &request(3)).is_ok());
    assert_eq!(relay.stop().len(), 2);
}

/// `HAProxy` in mode tcp passes TLS through: it sends the header in plain text, then what the client sends.
#[test]
fn the_header_comes_before_the_tls_handshake() {
    let authority = Authority::new();
    let (cert, key) = authority.sign("relay", ExtendedKeyUsagePurpose::ServerAuth);
    let setup = setup()
        .set("RECALL_HTTP__TLS__CERT", cert.to_str().unwrap())
        .set("RECALL_HTTP__TLS__KEY", key.to_str().unwrap());
    let relay = setup.start();
    let client = HttpsClient::new(&TLS13, &authority.ca(), None);
    let post = |stream: TcpStream, number| {
        let mut connection = client.connect_over(stream)?;
        connection.send(&request(number))?;
        connection.answer()
    };
    for (number, version) in (1..).zip(["send-proxy", "send-proxy-v2"]) {
        let haproxy = HaProxy::start(setup.folder(), relay.callbacks, version);
        let answer = post(connect_from(VENDOR, haproxy.address), number).unwrap();
        assert!(answer.is_ok(), "{version} {answer:?}");
        let answer = post(connect_from(STRANGER, haproxy.address), 99).unwrap();
        assert_eq!(answer.status, 403, "{version} {answer:?}");
        assert!(answer.text().contains("auth.allowed_sources"), "{answer:?}");
    }
    assert_eq!(relay.log_entry("proxy_header_invalid"), None);

    // Without a header, the proxy's connection is closed before the handshake.
    post(connect_from(PROXY, relay.callbacks), 98).unwrap_err();
    until("a WARN", || relay.log_entry("proxy_header_invalid"));
    assert_eq!(relay.stop().len(), 2);
}

#[test]
fn a_header_that_does_not_come_is_a_slow_head() {
    let relay = setup().set("RECALL_HTTP__READ_TIMEOUT", "500ms").start();
    for bytes in [&b""[..], b"PROXY TCP4 127."] {
        let began = Instant::now();
        assert_eq!(answer_and_close(PROXY, relay.callbacks, bytes), "");
        let took = began.elapsed();
        assert!((400..5000).contains(&took.as_millis()), "{took:?}");
    }
    assert_eq!(relay.log_entry("proxy_header_invalid"), None);
}

#[test]
fn connections_count_for_the_client() {
    let setup = setup().set("RECALL_HTTP__MAX_CONNECTIONS_PER_SOURCE", "2");
    let relay = setup.start();
    let haproxy = HaProxy::start(setup.folder(), relay.callbacks, "send-proxy-v2");
    let began = Instant::now();
    let open: Vec<TcpStream> = (0..3)
        .map(|_| connect_from(STRANGER, haproxy.address))
        .collect();
    // HAProxy may open its own in another order.
    let closed = until("one to be closed", || {
        let closed = open.iter().filter(|stream| {
            stream.set_nonblocking(true).unwrap();
            matches!((&mut &**stream).read(&mut [0; 1]), Ok(0))
        });
        Some(closed.count()).filter(|closed| *closed > 0)
    });
    assert_eq!(closed, 1);
    // Before `http.read_timeout`, which closes all of them.
    assert!(began.elapsed() < Duration::from_secs(8));
    let logged = until("a WARN", || relay.log_entry("source_connections_full"));
    assert_eq!(logged["source"], "127.0.0.3", "{logged}");
    assert!(post(VENDOR, haproxy.address, &request(1)).is_ok());
}

/// A real `HAProxy` in front of a relay. Dropping it kills it.
struct HaProxy {
    process: Child,
    address: SocketAddr,
    statistics: SocketAddr,
}

impl HaProxy {
    fn start(folder: &Path, relay: SocketAddr, version: &str) -> Self {
        let [address, statistics] =
            [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
        let config = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             listen callbacks\n bind {address}\n server relay {relay} {version} check inter 200ms check-send-proxy\n\
             frontend statistics\n mode http\n bind {statistics}\n stats enable\n stats uri /\n"
        );
        let mut process = start_haproxy(folder, &config, Stdio::inherit());
        until("HAProxy to listen", || {
            assert_eq!(process.try_wait().unwrap(), None, "it has ended");
            TcpStream::connect(statistics).ok()
        });
        Self {
            process,
            address,
            statistics,
        }
    }

    /// Waits until its health checks of the relay have succeeded several times.
    fn until_checked(&self) {
        std::thread::park_timeout(Duration::from_secs(1));
        let mut stream = TcpStream::connect(self.statistics).unwrap();
        stream.write_all(b"GET /;csv HTTP/1.0\r\n\r\n").unwrap();
        let mut csv = String::new();
        stream.read_to_string(&mut csv).unwrap();
        let mut lines = csv.lines();
        let relay = lines.find(|line| line.starts_with("callbacks,relay,"));
        assert!(relay.is_some_and(|line| line.contains(",UP,")), "{csv}");
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
