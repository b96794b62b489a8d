//! Carries out an attack: keeps a number of connections open, each of which misbehaves.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::connect::{Stream, Tls, encrypt, open_attack};
use super::rig::Recall;

/// All attackers have this address; honest clients have another one.
const FROM: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2)),
    0,
);

/// How long an attacker waits for a connection before it tries again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How many connections an attack usually opens in a second: the machine that runs the attackers runs the relay, too.
pub const OPENS_PER_SECOND: u32 = 1000;

/// The listener that is attacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    Plain,
    Tls,
}

/// What many connections do at the same time.
pub struct Attack {
    pub name: &'static str,
    pub listener: Listener,
    /// How many connections are kept open. One that is closed is opened again at once.
    pub connections: usize,
    /// The maximum number of connections that are opened in a second.
    pub opens_per_second: u32,
    /// What the connections do: each does one of them.
    pub shapes: Vec<Shape>,
    /// The recalls that attackers have signed. Each may be published once.
    pub signed: Vec<Recall>,
}

/// What a connection does.
#[derive(Clone)]
pub struct Shape {
    /// What it sends first.
    pub opening: Bytes,
    pub then: Then,
    /// Whether it shakes hands before.
    pub encrypted: bool,
}

/// What a connection does after its opening.
#[derive(Clone)]
pub enum Then {
    /// Reads what is answered and sends nothing more.
    Wait,
    /// Sends these bytes each time that the pause has passed, and reads what is answered.
    Repeat(Bytes, Duration),
    /// Sends these bytes each time that the pause has passed, and reads nothing.
    RepeatUnread(Bytes, Duration),
    /// Closes the connection after this time.
    Close(Duration),
}

impl Shape {
    pub fn new(opening: impl Into<Bytes>, then: Then) -> Self {
        Self {
            opening: opening.into(),
            then,
            encrypted: false,
        }
    }

    /// Does it on a connection until the relay closes that.
    async fn play(&self, mut stream: impl Stream) -> io::Result<()> {
        stream.write_all(&self.opening).await?;
        stream.flush().await?;
        match &self.then {
            Then::Wait => drain(stream).await,
            Then::Repeat(bytes, pause) => {
                let (reader, writer) = tokio::io::split(stream);
                tokio::select! {
                    ended = drain(reader) => ended,
                    ended = repeat(writer, bytes, *pause) => ended,
                }
            }
            Then::RepeatUnread(bytes, pause) => repeat(stream, bytes, *pause).await,
            Then::Close(after) => timeout(*after, drain(stream)).await.unwrap_or(Ok(())),
        }
    }
}

async fn drain(mut from: impl tokio::io::AsyncRead + Unpin) -> io::Result<()> {
    let mut buffer = [0; 1024];
    while from.read(&mut buffer).await? > 0 {}
    Ok(())
}

async fn repeat(
    mut to: impl tokio::io::AsyncWrite + Unpin,
    bytes: &[u8],
    pause: Duration,
) -> io::Result<()> {
    let mut ticks = interval(pause);
    ticks.tick().await; // The first one is at once.
    loop {
        ticks.tick().await;
        to.write_all(bytes).await?;
        to.flush().await?;
    }
}

/// Spreads the opening of connections over time.
struct Pacer {
    next: Mutex<Instant>,
    gap: Duration,
}

impl Pacer {
    async fn wait(&self) {
        let slot = {
            let mut next = self.next.lock().unwrap();
            let slot = (*next).max(Instant::now());
            *next = slot + self.gap;
            slot
        };
        sleep_until(slot).await;
    }
}

impl Attack {
    /// Attacks until `stop` is cancelled. Returns how many connections were opened.
    pub fn run(&self, to: SocketAddr, tls: Option<&Tls>, stop: &CancellationToken) -> u64 {
        let opened = Arc::new(AtomicU64::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let pacer = Arc::new(Pacer {
                next: Mutex::new(Instant::now()),
                gap: Duration::from_secs(1) / self.opens_per_second,
            });
            let mut connections = JoinSet::new();
            for shape in self.shapes.iter().cycle().take(self.connections) {
                let tls = tls.filter(|_| shape.encrypted).cloned();
                let (shape, pacer, opened) =
                    (shape.clone(), Arc::clone(&pacer), Arc::clone(&opened));
                connections.spawn(async move {
                    loop {
                        pacer.wait().await;
                        let _ = connect_and_play(&shape, to, tls.as_ref(), &opened).await;
                    }
                });
            }
            // The connections are closed when the set is dropped.
            stop.cancelled().await;
        });
        opened.load(Ordering::Relaxed)
    }
}

/// Opens a connection and plays the shape on it until the relay closes it.
async fn connect_and_play(
    shape: &Shape,
    to: SocketAddr,
    tls: Option<&Tls>,
    opened: &AtomicU64,
) -> io::Result<()> {
    // Answers that nobody reads must fill the buffers soon.
    let receive_buffer = matches!(shape.then, Then::RepeatUnread(..)).then_some(4096);
    let opening = async {
        let stream = open_attack(FROM, to, receive_buffer).await?;
        opened.fetch_add(1, Ordering::Relaxed);
        encrypt(stream, tls).await
    };
    let stream = timeout(CONNECT_TIMEOUT, opening).await??;
    shape.play(stream).await
}
