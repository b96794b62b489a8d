//! The network between a relay and a broker, and what can happen to it.

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

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// They arrive.
    Open,
    /// They do not, in either direction, and nobody is told. A connection that was open meanwhile leads
    /// nowhere for ever, as behind a firewall that forgot it; so does a new one.
    Lost,
    /// They arrive so much later, and so many in a second.
    Slow {
        latency: Duration,
        bytes_per_second: u32,
    },
}

/// Chunks under way in one direction: what bounds the proxy's memory.
const UNDER_WAY: usize = 64;

const CHUNK: usize = 4096;

/// A proxy for TCP on a port of the loopback; gone when dropped.
pub struct Proxy {
    port: u16,
    way: watch::Sender<Way>,
    over: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on `port` (0: any that is free) and leads to `to`.
    pub fn start(port: u16, to: u16) -> Self {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the proxy's port");
        listener.set_nonblocking(true).expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let (way, seen) = watch::channel(Way::Open);
        let (over, until) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(async {
                tokio::select! {
                    () = serve(listener, to, seen) => {}
                    _ = until => {}
                }
            });
        });
        Self {
            port,
            way,
            over: Some(over),
            thread: Some(thread),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes it for connections that are open and for those that come.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: StdListener, to: u16, way: watch::Receiver<Way>) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(lead(client, to, way.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Leads one connection. The end of one direction is the end of both.
async fn lead(mut client: TcpStream, to: u16, mut way: watch::Receiver<Way>) {
    if *way.borrow() == Way::Lost {
        return pending().await;
    }
    let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let (forth_way, back_way) = (way.clone(), way.clone());
    let is_lost = tokio::select! {
        biased;
        () = lost(&mut way) => true,
        _ = pump(&mut from_client, &mut to_server, &forth_way) => false,
        _ = pump(&mut from_server, &mut to_client, &back_way) => false,
    };
    if is_lost {
        // Both sockets stay open: whoever writes sees nothing but that no answer comes.
        pending::<()>().await;
    }
}

async fn lost(way: &mut watch::Receiver<Way>) {
    let _ = way.wait_for(|way| *way == Way::Lost).await.is_ok();
}

async fn pump(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    way: &watch::Receiver<Way>,
) -> io::Result<()> {
    let (put, mut take) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let read = async {
        let put = put;
        loop {
            let mut chunk = vec![0; CHUNK];
            let length = from.read(&mut chunk).await?;
            if length == 0 {
                return Ok(());
            }
            chunk.truncate(length);
            let latency = match *way.borrow() {
                Way::Slow { latency, .. } => latency,
                Way::Open | Way::Lost => Duration::ZERO,
            };
            if put.send((Instant::now() + latency, chunk)).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async {
        while let Some((due, chunk)) = take.recv().await {
            sleep_until(due).await;
            let way = *way.borrow();
            if let Way::Slow {
                bytes_per_second, ..
            } = way
            {
                let length = u32::try_from(chunk.len()).expect("a chunk");
                sleep(Duration::from_secs(1) * length / bytes_per_second).await;
            }
            to.write_all(&chunk).await?;
        }
        io::Result::Ok(())
    };
    tokio::try_join!(read, write).map(|_| ())
}
