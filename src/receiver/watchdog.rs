//! How long a connection may say nothing, or not enough.
//!
//! hyper's own time-outs do not cover a peer that connects and says nothing (the protocol's version is
//! not known yet), and its limit for HTTP/1 heads is its idle limit too. So each connection has a
//! watchdog of ours: without an open request, bytes of a head must become a request within
//! `read_timeout`, a new connection must bring its first one by then, and silence lasts at most
//! `idle_timeout`.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Limits;

/// What a connection is doing, as far as its time is limited.
#[derive(Debug, Clone)]
pub(super) struct Watch(Arc<Mutex<Doing>>);

#[derive(Debug)]
struct Doing {
    open_requests: usize,
    /// Bytes of a request have come, and no request yet. Not known of HTTP/2, which also talks to
    /// itself.
    in_head: bool,
    http2: Option<bool>,
    /// There was a request.
    asked: bool,
    since: Instant,
}

/// A request that is open until dropped.
pub(super) struct Open(Watch);

impl Watch {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Doing {
            open_requests: 0,
            in_head: false,
            http2: None,
            asked: false,
            since: Instant::now(),
        })))
    }

    fn doing(&self) -> MutexGuard<'_, Doing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn received(&self, bytes: &[u8]) {
        let mut doing = self.doing();
        // "PRI * HTTP/2.0": no HTTP/1 method begins so. Nobody sends it letter by letter.
        let http2 = *doing.http2.get_or_insert(bytes.starts_with(b"PRI"));
        if doing.open_requests == 0 && !doing.in_head && !http2 {
            doing.in_head = true;
            if doing.asked {
                doing.since = Instant::now();
            }
        }
    }

    /// A request has come.
    pub(super) fn open(&self) -> Open {
        let mut doing = self.doing();
        doing.open_requests += 1;
        doing.in_head = false;
        doing.asked = true;
        drop(doing);
        Open(self.clone())
    }

    fn deadline(&self, limits: Limits) -> Option<Instant> {
        let doing = self.doing();
        if doing.open_requests > 0 {
            return None;
        }
        let limit = if doing.in_head || !doing.asked {
            limits.read_timeout
        } else {
            limits.idle_timeout
        };
        Some(doing.since + *limit)
    }

    /// Whether the connection is to be closed.
    pub(super) fn is_overdue(&self, limits: Limits) -> bool {
        self.deadline(limits)
            .is_some_and(|deadline| deadline <= Instant::now())
    }

    /// When to look again. A head may begin at any moment, so never later than its limit from now.
    pub(super) fn look_again(&self, limits: Limits) -> Instant {
        let soon = Instant::now() + *limits.read_timeout;
        self.deadline(limits)
            .map_or(soon, |deadline| deadline.min(soon))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut doing = self.0.doing();
        doing.open_requests -= 1;
        doing.since = Instant::now();
    }
}

/// A stream that tells its watch when something arrives.
pub(super) struct Watched {
    stream: TcpStream,
    watch: Watch,
}

impl Watched {
    pub(super) const fn new(stream: TcpStream, watch: Watch) -> Self {
        Self { stream, watch }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Some(received) = buffer
            .filled()
            .get(before..)
            .filter(|bytes| !bytes.is_empty())
        {
            self.watch.received(received);
        }
        outcome
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
