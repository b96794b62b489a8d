//! `deploy/nginx.conf` splits the callbacks between the relay and a backend, with a real nginx.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod rig;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use rcgen::ExtendedKeyUsagePurpose;
use recall_relay::vendor::{BodyFormat, CallbackKind};
use rig::{
    APP, Authority, Relay, Setup, TIMEOUT, connect_from, free_port, recall, recall_query, until,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// The address that the relay accepts recalls from, and another one.
const VENDOR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// The time of every recall, in Unix milliseconds.
const RECALLED_AT: u64 = 1_670_574_414_123;

const OK: &str = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

/// What the backend answers: it forbids the message.
const FORBIDDEN: &str = r#"{"ActionStatus":"OK","ErrorInfo":"no","ErrorCode":10100}"#;

/// A before-callback.
fn other_query() -> String {
    CallbackKind::Other.query(APP, None)
}

#[test]
fn recalls_reach_the_relay_and_everything_else_the_backend() {
    let port = free_port();
    let requests = start_backend(port);
    let split = Split::start(port);
    let format = BodyFormat::default();
    let recalls = [
        (CallbackKind::C2c, format.c2c("a", "b", 1, RECALLED_AT)),
        (CallbackKind::Group, recall("g", 1)),
        (
            CallbackKind::OfficialAccount,
            format.official_account("@TOA#_a", [1], RECALLED_AT),
        ),
    ];
    for (kind, body) in &recalls {
        let answer = split.post(&kind.query(APP, None), body);
        assert_eq!(answer, (200, OK.to_owned()), "{kind:?}");
    }
    let events = split.relay.events(3);
    let kinds = events
        .iter()
        .map(|event| &event["data"]["conversation"]["kind"]);
    assert!(kinds.eq(["c2c", "group", "official_account"]), "{events:?}");

    // Query and body arrive byte for byte.
    let body = "{ \"CallbackCommand\" : \"Group.CallbackBeforeSendMsg\", \"Text\": \"\\u00e9 \u{e9}\" }\r\n";
    let queries = [
        (format!("{}&Sign=%41+b&x=%2F&x=", other_query()), body),
        ("CallbackCommand=Some.CallbackOfTomorrow".to_owned(), "{}"),
        ("SdkAppid=1400000001".to_owned(), "not JSON"),
        // The console's probe.
        (
            "CallbackCommand=Group.CallbackBeforeSendMsg&contenttype=json".to_owned(),
            "",
        ),
    ];
    for (query, body) in queries {
        let answer = split.post(&query, body);
        assert_eq!(answer, (200, FORBIDDEN.to_owned()), "{query}");
        let (line, received) = requests.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(line, format!("POST /im?{query} HTTP/1.1"));
        assert_eq!(received, body);
    }
    assert!(
        requests.try_recv().is_err(),
        "a recall has reached the backend"
    );
    assert!(
        split.relay.log_entry("command_ignored").is_none(),
        "{}",
        split.relay.log()
    );

    // If its query names a recall, the relay answers the probe.
    let answer = split.post(&CallbackKind::Probe.query(APP, None), "");
    assert_eq!(answer, (200, OK.to_owned()));
    assert_eq!(split.relay.outcome_count("probe"), 1);
}

#[test]
fn the_relay_sees_the_address_of_the_client() {
    // No backend: everything goes to the relay.
    let split = Split::start(free_port());
    let claimed = format!("X-Forwarded-For: {VENDOR}\r\n");
    let (status, body) = split.send(STRANGER, &claimed, &recall_query(), &recall("g", 1));
    assert_eq!(status, 403, "{body}");
    let (status, body) = split.send(VENDOR, "", &recall_query(), &recall("g", 1));
    assert_eq!(status, 200, "{body}");
    assert_eq!(split.relay.events(1).len(), 1);
}

#[test]
fn neither_needs_the_other() {
    let port = free_port();
    let split = Split::start(port);
    assert_eq!(split.post(&other_query(), "{}").0, 502);
    assert_eq!(split.post(&recall_query(), &recall("g", 1)).0, 200);

    // nginx does not remember that a server was away.
    let _requests = start_backend(port);
    assert_eq!(
        split.post(&other_query(), "{}"),
        (200, FORBIDDEN.to_owned())
    );
    assert_eq!(split.relay.events(1).len(), 1);

    let Split { nginx, relay } = split;
    relay.kill();
    let send = |query: &str| nginx.send(VENDOR, "", query, "{}");
    assert_eq!(send(&recall_query()).0, 502);
    assert_eq!(send(&other_query()), (200, FORBIDDEN.to_owned()));
}

/// nginx in front of a relay and a backend.
struct Split {
    nginx: Nginx,
    relay: Relay,
}

impl Split {
    fn start(backend: u16) -> Self {
        let setup = Setup::new()
            .set("RECALL_HTTP__PATH", "/im")
            .set("RECALL_AUTH__TRUSTED_PROXIES", "127.0.0.1")
            .set("RECALL_AUTH__ALLOWED_SOURCES", &VENDOR.to_string());
        let relay = setup.start();
        let folder = setup.folder().join("nginx");
        let nginx = Nginx::start(&folder, relay.callbacks.port(), backend);
        Self { nginx, relay }
    }

    fn post(&self, query: &str, body: &str) -> (u16, String) {
        self.nginx.send(VENDOR, "", query, body)
    }

    fn send(&self, from: Ipv4Addr, headers: &str, query: &str, body: &str) -> (u16, String) {
        self.nginx.send(from, headers, query, body)
    }
}

/// An nginx with `deploy/nginx.conf`. Dropping it kills it.
struct Nginx {
    process: Child,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    _authority: Authority,
}

impl Nginx {
    /// Starts it with everything that it writes in `folder`.
    fn start(folder: &Path, relay: u16, backend: u16) -> Self {
        let authority = Authority::new();
        let (cert, key) = authority.sign("nginx", ExtendedKeyUsagePurpose::ServerAuth);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let mut split =
            fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/nginx.conf")).unwrap();
        for (shipped, here) in [
            (
                "server 127.0.0.1:8080;",
                format!("server 127.0.0.1:{relay};"),
            ),
            (
                "server 127.0.0.1:9000;",
                format!("server 127.0.0.1:{backend};"),
            ),
            ("listen 443 ssl;", format!("listen {address} ssl;")),
            ("/etc/nginx/callbacks.pem", cert.display().to_string()),
            ("/etc/nginx/callbacks.key", key.display().to_string()),
        ] {
            assert_eq!(split.matches(shipped).count(), 1, "{shipped}");
            split = split.replace(shipped, &here);
        }
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("split.conf"), split).unwrap();
        // One process, as the user of the test, which writes nowhere but into its folder.
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|module| format!("{module}_temp_path {module};"));
        let main = format!(
            "daemon off; master_process off; pid nginx.pid; events {{}}\n\
             http {{ access_log off; {} include split.conf; }}\n",
            temporary.join(" ")
        );
        fs::write(folder.join("nginx.conf"), main).unwrap();
        let process = Command::new("nginx")
            .args(["-e", "stderr", "-c", "nginx.conf", "-p"])
            .arg(format!("{}/", folder.display()))
            .stdin(Stdio::null())
            .spawn();
        let process = process.expect("nginx is missing: run tests/run, which installs it");

        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(authority.ca()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut nginx = Self {
            process,
            address,
            tls: Arc::new(tls),
            _authority: authority,
        };
        until("nginx to listen", || {
            assert_eq!(nginx.process.try_wait().unwrap(), None, "it has ended");
            TcpStream::connect(address).ok()
        });
        nginx
    }

    /// Sends a callback from a loopback address; returns status and body of the answer.
    fn send(&self, from: Ipv4Addr, headers: &str, query: &str, body: &str) -> (u16, String) {
        let name = "localhost".try_into().unwrap();
        let session = ClientConnection::new(Arc::clone(&self.tls), name).unwrap();
        let mut stream = StreamOwned::new(session, connect_from(from, self.address));
        write!(
            stream,
            "POST /im?{query} HTTP/1.1\r\nHost: callbacks.example.com\r\nConnection: close\r\n{headers}\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap();
        (status.parse().unwrap(), body.to_owned())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a backend that forbids whatever it is asked, until the process ends. Returns the request lines and bodies
/// that it receives.
fn start_backend(port: u16) -> Receiver<(String, String)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let (requests, received) = sync_channel(100);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, requests) = (stream.unwrap(), requests.clone());
            thread::spawn(move || answer_all(stream, &requests));
        }
    });
    received
}

/// Answers the requests of a connection until nginx closes it.
fn answer_all(stream: TcpStream, requests: &SyncSender<(String, String)>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream) {
        let _ = requests.send(request);
        let length = FORBIDDEN.len();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{FORBIDDEN}");
        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn read_request(stream: &mut BufReader<TcpStream>) -> Option<(String, String)> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        stream
            .read_line(&mut line)
            .ok()
            .filter(|&bytes| bytes > 0)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        head.push(line.to_owned());
    }
    let length = head
        .iter()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).ok()?;
    Some((head.swap_remove(0), String::from_utf8(body).unwrap()))
}
