//! A TCP proxy between a relay and a broker that simulates network faults.

use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// What the proxy does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// It forwards them.
    Open,
    /// It drops them in both directions without an error. A connection that is open meanwhile stays dead, as
    /// behind a firewall that has lost its state; so does a connection that is opened meanwhile.
    DropPackets,
    /// It delays them by `latency` and limits their rate.
    Slow {
        latency: Duration,
        bytes_per_second: u32,
    },
}

/// The maximum number of chunks in transit in one direction, which bounds the proxy's memory.
const CHUNKS_IN_TRANSIT: usize = 64;

const CHUNK: usize = 4096;

/// A TCP proxy on a loopback port; it stops when it is dropped.
pub struct Proxy {
    port: u16,
    mode: watch::Sender<NetworkMode>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on `port` (0: any free port) and forwards to `to`.
    pub fn start(port: u16, to: u16) -> Self {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, port))
            .expect("cannot listen on the proxy's port");
        listener.set_nonblocking(true).expect("invalid listener");
        let port = listener.local_addr().expect("no local address").port();
        let (mode, current_mode) = watch::channel(NetworkMode::Open);
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("cannot start a runtime").block_on(async {
                tokio::select! {
                    () = serve(listener, to, current_mode) => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            port,
            mode,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the proxy's behaviour for open and for new connections.
    pub fn set(&self, mode: NetworkMode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: StdListener, to: u16, mode: watch::Receiver<NetworkMode>) {
    let listener = TcpListener::from_std(listener).expect("invalid listener");
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(forward_connection(client, to, mode.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Forwards one connection. When one direction ends, both end.
async fn forward_connection(
    mut client: TcpStream,
    to: u16,
    mut mode: watch::Receiver<NetworkMode>,
) {
    if *mode.borrow() == NetworkMode::DropPackets {
        return pending().await;
    }
    let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let (forth_mode, back_mode) = (mode.clone(), mode.clone());
    let drops_packets = tokio::select! {
        biased;
        () = packets_dropped(&mut mode) => true,
        _ = pump(&mut from_client, &mut to_server, &forth_mode) => false,
        _ = pump(&mut from_server, &mut to_client, &back_mode) => false,
    };
    if drops_packets {
        // Keep both sockets open: a peer that writes gets no error, and no answer.
        pending::<()>().await;
    }
}

async fn packets_dropped(mode: &mut watch::Receiver<NetworkMode>) {
    let _ = mode
        .wait_for(|mode| *mode == NetworkMode::DropPackets)
        .await
        .is_ok();
}

async fn pump(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    mode: &watch::Receiver<NetworkMode>,
) -> io::Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_IN_TRANSIT);
    let read = async {
        // Moved here, so that the channel closes when reading ends.
        let sender = sender;
        loop {
            let mut chunk = vec![0; CHUNK];
            let length = from.read(&mut chunk).await?;
            if length == 0 {
                return Ok(());
            }
            chunk.truncate(length);
            let latency = match *mode.borrow() {
                NetworkMode::Slow { latency, .. } => latency,
                NetworkMode::Open | NetworkMode::DropPackets => Duration::ZERO,
            };
            if sender
                .send((Instant::now() + latency, chunk))
                .await
                .is_err()
            {
                return Ok(());
            }
        }
    };
    let write = async {
        while let Some((due, chunk)) = receiver.recv().await {
            sleep_until(due).await;
            let mode = *mode.borrow();
            if let NetworkMode::Slow {
                bytes_per_second, ..
            } = mode
            {
                let length = u32::try_from(chunk.len()).expect("a chunk exceeds u32");
                sleep(Duration::from_secs(1) * length / bytes_per_second).await;
            }
            to.write_all(&chunk).await?;
        }
        io::Result::Ok(())
    };
    tokio::try_join!(read, write).map(|_| ())
}
