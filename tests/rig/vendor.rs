//! A client that sends callbacks as the vendor does, and a load of recalls.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use recall_relay::vendor::{BodyFormat, CallbackKind, PayloadVersion};

use super::oracle::Recall;
use super::relay::APP;

/// The time of every recall, in Unix milliseconds.
const RECALLED_AT: u64 = 1_670_574_414_123;

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub took: Duration,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn is_ok(&self) -> bool {
        self.status == 200 && self.body == br#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#
    }
}

/// The query string of a recall.
pub fn recall_query() -> String {
    CallbackKind::Group.query(APP, None)
}

/// The body of recall number `number` of a group.
pub fn recall(group: &str, number: u64) -> String {
    BodyFormat::default().group(group, [number], |seq| format!("{group}-{seq}"), RECALLED_AT)
}

/// The body of a recall whose event is longer than `bytes`.
pub fn large_recall(group: &str, bytes: usize) -> String {
    let format = BodyFormat {
        version: PayloadVersion::V1,
        ..BodyFormat::default()
    };
    format.group(group, 1..=bytes as u64 / 10, |_| String::new(), RECALLED_AT)
}

/// The body of recall number `number` of a group, whose event is longer than `bytes`.
pub fn padded_recall(group: &str, number: u64, bytes: usize) -> String {
    BodyFormat::default().group(group, [number], |_| "x".repeat(bytes), RECALLED_AT)
}

/// The bytes of a request.
pub fn encode(method: &str, target: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Sends one request on a new connection.
pub fn request(to: SocketAddr, method: &str, target: &str, body: &[u8]) -> Answer {
    let mut connection = Connection::open(to).unwrap();
    connection.request(method, target, body).unwrap()
}

/// A connection from a loopback address other than 127.0.0.1.
pub fn connect_from(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    // The standard library cannot bind a client's address.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(to).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
}

/// A keep-alive connection.
pub struct Connection<S = TcpStream>(BufReader<S>);

impl<S: Read> From<S> for Connection<S> {
    fn from(stream: S) -> Self {
        Self(BufReader::new(stream))
    }
}

impl Connection {
    pub fn open(to: SocketAddr) -> io::Result<Self> {
        Self::open_with(to, Duration::from_secs(5), Duration::from_secs(30))
    }

    /// Opens a connection with timeouts for connecting and for each read of an answer.
    pub fn open_with(to: SocketAddr, connect: Duration, answer: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, connect)?;
        stream.set_read_timeout(Some(answer))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }
}

impl<S: Read + Write> Connection<S> {
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    pub fn request(&mut self, method: &str, target: &str, body: &[u8]) -> io::Result<Answer> {
        let began = Instant::now();
        self.send(&encode(method, target, body))?;
        let mut answer = self.answer()?;
        answer.took = began.elapsed();
        Ok(answer)
    }

    /// Posts the body of a recall of group messages.
    pub fn post_recall(&mut self, body: &str) -> io::Result<Answer> {
        self.request("POST", &format!("/?{}", recall_query()), body.as_bytes())
    }

    pub fn answer(&mut self) -> io::Result<Answer> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status: {line:?}")))?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length = length
            .and_then(|(_, length)| length.parse().ok())
            .unwrap_or(0);
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(Answer {
            status,
            headers,
            body,
            took: Duration::ZERO,
        })
    }
}

/// Sends recalls over several connections, each with its own conversation, until stopped: at most 100,000 on each. A
/// lost connection is reopened for the next recall; the lost recall is not sent again.
pub struct Load {
    stopped: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    senders: Vec<JoinHandle<Vec<Recall>>>,
}

impl Load {
    /// Starts `connections` senders, which wait for `pause` between an answer and the next request.
    pub fn start(to: SocketAddr, run: &str, connections: usize, pause: Duration) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let senders = (0..connections)
            .map(|connection| {
                let (stopped, count) = (Arc::clone(&stopped), Arc::clone(&acknowledged));
                let group = format!("{run}-{connection}");
                thread::spawn(move || send_until(&stopped, &count, to, &group, pause))
            })
            .collect();
        Self {
            stopped,
            acknowledged,
            senders,
        }
    }

    /// How many recalls were answered OK so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Stops; returns every recall that was answered OK.
    pub fn stop(self) -> Vec<Recall> {
        self.stopped.store(true, Ordering::Relaxed);
        self.senders
            .into_iter()
            .flat_map(|sender| sender.join().unwrap())
            .collect()
    }
}

fn send_until(
    stopped: &AtomicBool,
    count: &AtomicU64,
    to: SocketAddr,
    group: &str,
    pause: Duration,
) -> Vec<Recall> {
    let mut acknowledged = Vec::new();
    let mut connection = None;
    let mut number = 0;
    while !stopped.load(Ordering::Relaxed) && number < 100_000 {
        number += 1;
        let open = connection.take().map_or_else(|| Connection::open(to), Ok);
        let answer = open.and_then(|mut open| {
            let answer = open.post_recall(&recall(group, number))?;
            connection = Some(open);
            Ok(answer)
        });
        match answer {
            Ok(answer) if answer.is_ok() => {
                acknowledged.push(Recall::new(group, number));
                count.fetch_add(1, Ordering::Relaxed);
            }
            // Refused or lost: wait, so as not to spin while the relay is down.
            Ok(_) | Err(_) => thread::park_timeout(Duration::from_millis(5)),
        }
        thread::park_timeout(pause);
    }
    acknowledged
}
