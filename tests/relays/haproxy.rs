//! A real `HAProxy` with `deploy/haproxy.cfg`.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::version::TLS13;

use crate::rig::{
    Answer, Authority, HttpsClient, HttpsConnection, Lines, connect_from, encode, free_port,
    start_haproxy, until,
};

/// The address that the relays accept recalls from: they see it only if `HAProxy` tells them the client's.
pub const VENDOR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// How long the vendor waits for an answer.
pub const VENDOR_WAITS: Duration = Duration::from_secs(2);

/// What `deploy/haproxy.cfg` has in force, and its two alternatives.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    ActiveStandby,
    ActiveActive,
    ByApplication,
}

/// The listeners of a relay.
#[derive(Clone, Copy)]
pub struct Ports {
    pub callbacks: u16,
    pub admin: u16,
}

/// Dropping it kills it.
pub struct HaProxy {
    process: Child,
    log: Lines,
    address: SocketAddr,
    socket: PathBuf,
    client: HttpsClient,
    _authority: Authority,
}

impl HaProxy {
    /// Starts it with everything that it writes in `folder`.
    pub fn start(folder: &Path, mode: Mode, relays: [Ports; 2]) -> Self {
        let authority = Authority::new();
        let (cert, key) = authority.sign("haproxy", ExtendedKeyUsagePurpose::ServerAuth);
        let pem = folder.join("callbacks.pem");
        let both = [cert, key].map(|path| fs::read_to_string(path).unwrap());
        fs::write(&pem, both.concat()).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let socket = folder.join("haproxy.sock");
        let config = format!(
            "global\n log stdout format raw local0\n stats socket {}\n{}",
            socket.display(),
            shipped(mode, address, &pem, relays)
        );
        let mut process = start_haproxy(folder, &config, Stdio::piped());
        let log = Lines::default();
        log.collect_from(process.stdout.take().unwrap());
        let mut haproxy = Self {
            process,
            log,
            address,
            socket,
            client: HttpsClient::new(&TLS13, &authority.ca(), None),
            _authority: authority,
        };
        until("HAProxy to listen", || {
            assert_eq!(haproxy.process.try_wait().unwrap(), None, "it has ended");
            UnixStream::connect(&haproxy.socket).ok()
        });
        haproxy
    }

    pub fn client(&self) -> Client {
        Client {
            tls: self.client.clone(),
            address: self.address,
            connection: None,
        }
    }

    /// Waits until it sends callbacks to this relay (1 or 2), or none any more.
    #[track_caller]
    pub fn until_up(&self, relay: usize, is_up: bool) {
        let expected = if is_up { "UP" } else { "DOWN" };
        until(&format!("relay{relay} to be {expected}"), || {
            // "UP 1/2" is about to go down.
            self.field(relay, "status")
                .starts_with(expected)
                .then_some(())
        });
    }

    /// How many callbacks that this relay did not take were sent to the other one.
    pub fn resent(&self, relay: usize) -> u64 {
        self.field(relay, "wredis").parse().unwrap()
    }

    /// A field of a server's statistics.
    fn field(&self, relay: usize, name: &str) -> String {
        let mut socket = UnixStream::connect(&self.socket).unwrap();
        socket.write_all(b"show stat\n").unwrap();
        let mut csv = String::new();
        socket.read_to_string(&mut csv).unwrap();
        let names = csv.lines().next().unwrap().trim_start_matches("# ");
        let column = names.split(',').position(|known| known == name).unwrap();
        let server = format!("relays,relay{relay},");
        let line = csv.lines().find(|line| line.starts_with(&server)).unwrap();
        line.split(',').nth(column).unwrap().to_owned()
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            let lines = self.log.all();
            let lines = lines.iter().filter(|line| !line.contains(" 200 "));
            let lines: Vec<_> = lines.map(String::as_str).collect();
            eprintln!("--- log of HAProxy\n{}", lines.join("\n"));
        }
    }
}

/// `deploy/haproxy.cfg` in this mode, with the addresses of this test.
fn shipped(mode: Mode, address: SocketAddr, pem: &Path, relays: [Ports; 2]) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/haproxy.cfg");
    let mut config = fs::read_to_string(path).unwrap();
    let mut replace = |shipped: &str, here: &str| {
        assert_eq!(config.matches(shipped).count(), 1, "{shipped}");
        config = config.replace(shipped, here);
    };
    replace("bind :443 ssl", &format!("bind {address} ssl"));
    replace("/etc/haproxy/callbacks.pem", pem.to_str().unwrap());
    for (name, Ports { callbacks, admin }) in ["10.0.0.11", "10.0.0.12"].into_iter().zip(relays) {
        replace(
            &format!("{name}:8080 check port 8081"),
            &format!("127.0.0.1:{callbacks} check port {admin}"),
        );
    }
    let alternative: &[&str] = match mode {
        Mode::ActiveStandby => &[],
        Mode::ActiveActive => &["balance roundrobin"],
        Mode::ByApplication => &["balance url_param SdkAppid", "hash-type consistent"],
    };
    if !alternative.is_empty() {
        replace("    balance first\n", "");
    }
    for line in alternative {
        replace(&format!("    #{line}\n"), &format!("    {line}\n"));
    }
    config
}

/// A client that gives up when the vendor does. It keeps its connection.
pub struct Client {
    tls: HttpsClient,
    address: SocketAddr,
    connection: Option<HttpsConnection>,
}

impl Client {
    pub fn post(&mut self, query: &str, body: &str) -> io::Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        connection.send(&encode("POST", &format!("/?{query}"), body.as_bytes()))?;
        let answer = connection.answer()?;
        if answer.header("connection") != Some("close") {
            self.connection = Some(connection);
        }
        Ok(answer)
    }

    fn connect(&self) -> io::Result<HttpsConnection> {
        let stream = connect_from(VENDOR, self.address);
        let same = stream.try_clone()?;
        let connection = self.tls.connect_over(stream)?;
        same.set_read_timeout(Some(VENDOR_WAITS))?;
        Ok(connection)
    }
}
