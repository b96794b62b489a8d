//! A backend behind the relay: it records each request exactly as it came, and answers as the test tells it.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::{Authority, free_port, until};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Received {
    /// All values of a header, in order.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let of_name = self.headers.iter().filter(|(known, _)| known == name);
        of_name.map(|(_, value)| value.as_str()).collect()
    }
}

/// What the backend does with a request.
#[derive(Debug, Clone)]
pub struct Reply {
    delay: Duration,
    bytes: Vec<u8>,
    then: Then,
}

#[derive(Debug, Clone, Copy)]
enum Then {
    Read,
    Close,
    Hang,
}

impl Reply {
    /// These bytes, whatever they are.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            delay: Duration::ZERO,
            bytes: bytes.into(),
            then: Then::Read,
        }
    }

    /// An answer with this status, these header lines, and a body of known length.
    pub fn new(status: u16, headers: &str, body: &[u8]) -> Self {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} Reason\r\n{headers}Content-Length: {length}\r\n\r\n");
        Self::raw([head.as_bytes(), body].concat())
    }

    pub fn json(body: &str) -> Self {
        Self::new(200, "Content-Type: application/json\r\n", body.as_bytes())
    }

    /// Nothing, until the test tells something else, which then applies to this request, too.
    pub fn hang() -> Self {
        Self::raw("").then_hang()
    }

    /// The same, but later.
    pub fn late(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// The same; then closes the connection without having said so.
    pub fn then_close(self) -> Self {
        Self {
            then: Then::Close,
            ..self
        }
    }

    /// The same; then sends nothing more on this connection, and reads nothing.
    pub fn then_hang(self) -> Self {
        Self {
            then: Then::Hang,
            ..self
        }
    }
}

type Script = Arc<dyn Fn(&Received) -> Reply + Send + Sync>;

struct State {
    script: Script,
    /// How often the script was replaced.
    version: usize,
    received: Vec<Received>,
    answered: usize,
    accepted: usize,
    open: HashMap<usize, TcpStream>,
    stopped: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    tls: Option<Arc<ServerConfig>>,
}

/// A backend; it stops when it is dropped.
pub struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

impl Backend {
    /// A backend that answers each request with an empty JSON object.
    pub fn start() -> Self {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())))
    }

    pub fn start_at(address: SocketAddr) -> Self {
        Self::start_with(address, None)
    }

    /// A backend that speaks HTTPS, and requires a client certificate of the same authority.
    pub fn start_tls(authority: &Authority) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        Self::start_with(address, Some(Arc::new(server_config(authority))))
    }

    fn start_with(address: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Self {
        let state = State {
            script: Arc::new(|_| Reply::json("{}")),
            version: 0,
            received: Vec::new(),
            answered: 0,
            accepted: 0,
            open: HashMap::new(),
            stopped: true,
        };
        let shared = Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            tls,
        };
        let mut backend = Self {
            address,
            shared: Arc::new(shared),
            listening: None,
        };
        backend.resume();
        backend
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on answers each request with this.
    pub fn reply(&self, reply: Reply) {
        self.reply_by(move |_| reply.clone());
    }

    /// From now on answers each request with what this returns.
    pub fn reply_by(&self, script: impl Fn(&Received) -> Reply + Send + Sync + 'static) {
        let mut state = self.shared.state();
        state.script = Arc::new(script);
        state.version += 1;
        self.shared.changed.notify_all();
    }

    /// The requests so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.state().received.clone()
    }

    /// How many requests there were so far.
    pub fn count(&self) -> usize {
        self.shared.state().received.len()
    }

    /// Waits until there are this many requests, and returns them.
    #[track_caller]
    pub fn until_received(&self, count: usize) -> Vec<Received> {
        until(&format!("{count} requests at the backend"), || {
            (self.count() >= count).then(|| self.received())
        })
    }

    /// The latest request.
    #[track_caller]
    pub fn last(&self) -> Received {
        self.shared.state().received.last().unwrap().clone()
    }

    /// How many answers were written.
    pub fn answered(&self) -> usize {
        self.shared.state().answered
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.state().accepted
    }

    /// Waits until the relay has closed all its connections, too.
    #[track_caller]
    pub fn until_unconnected(&self) {
        until("the connections to be closed", || {
            self.shared.state().open.is_empty().then_some(())
        });
    }

    /// Stops listening, and closes all connections.
    pub fn stop(&mut self) {
        let Some(listening) = self.listening.take() else {
            return;
        };
        {
            let mut state = self.shared.state();
            state.stopped = true;
            for connection in state.open.values() {
                let _ = connection.shutdown(Shutdown::Both);
            }
            self.shared.changed.notify_all();
        }
        // Wakes it.
        let _ = TcpStream::connect(self.address);
        let _ = listening.join();
    }

    /// Listens again on the same address.
    pub fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).expect("cannot listen as a backend");
        self.shared.state().stopped = false;
        let shared = Arc::clone(&self.shared);
        self.listening = Some(thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.state().stopped {
                    return;
                }
                if let Ok(stream) = stream {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || shared.serve(stream));
                }
            }
        }));
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn serve(&self, stream: TcpStream) {
        let id = {
            let mut state = self.state();
            let (id, clone) = (state.accepted, stream.try_clone());
            state.accepted += 1;
            state.open.insert(id, clone.unwrap());
            if state.stopped {
                let _ = stream.shutdown(Shutdown::Both);
            }
            id
        };
        let _ = stream.set_nodelay(true);
        let raw = stream.try_clone().unwrap();
        // An error is the end of the connection.
        let _ = match &self.tls {
            None => self.talk(BufReader::new(stream), &raw),
            Some(config) => {
                let connection = ServerConnection::new(Arc::clone(config)).unwrap();
                self.talk(BufReader::new(StreamOwned::new(connection, stream)), &raw)
            }
        };
        let _ = raw.shutdown(Shutdown::Both);
        self.state().open.remove(&id);
    }

    fn talk(&self, mut stream: BufReader<impl Read + Write>, raw: &TcpStream) -> io::Result<()> {
        while let Some(request) = read_request(&mut stream)? {
            self.state().received.push(request.clone());
            let then = loop {
                let (script, version) = {
                    let state = self.state();
                    (Arc::clone(&state.script), state.version)
                };
                let reply = script(&request);
                if !self.pause(reply.delay) {
                    return Ok(());
                }
                stream.get_mut().write_all(&reply.bytes)?;
                stream.get_mut().flush()?;
                if !matches!(reply.then, Then::Hang) {
                    self.state().answered += 1;
                    break reply.then;
                }
                let changed = self.changed.wait_while(self.state(), |state| {
                    state.version == version && !state.stopped
                });
                if changed.unwrap().stopped || !reply.bytes.is_empty() {
                    return Ok(());
                }
            };
            if matches!(then, Then::Close) {
                raw.shutdown(Shutdown::Write)?;
                io::copy(&mut stream, &mut io::sink())?;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits; returns false if the backend was stopped meanwhile.
    fn pause(&self, delay: Duration) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.state(), delay, |state| !state.stopped);
        !waited.unwrap().0.stopped
    }
}

/// Reads a request; `None` if there are no more.
fn read_request(stream: &mut BufReader<impl Read>) -> io::Result<Option<Received>> {
    let mut line = || {
        let mut line = Vec::new();
        stream.read_until(b'\n', &mut line)?;
        let text = String::from_utf8_lossy(&line);
        io::Result::Ok(text.trim_end_matches("\r\n").to_owned())
    };
    let first = line()?;
    let at = Instant::now();
    let mut words = first.split(' ').map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut headers = Vec::new();
    while let Some((name, value)) = line()?.split_once(": ") {
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.map_or(0, |(_, length)| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some(Received {
        method,
        target,
        headers,
        body,
        at,
    }))
}

fn server_config(authority: &Authority) -> ServerConfig {
    let (cert, key) = authority.sign("backend", ExtendedKeyUsagePurpose::ServerAuth);
    let certificate =
        |path: &Path| CertificateDer::from_pem_slice(&fs::read(path).unwrap()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate(&authority.ca())).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let key = PrivateKeyDer::from_pem_slice(&fs::read(key).unwrap()).unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![certificate(&cert)], key)
        .unwrap()
}
