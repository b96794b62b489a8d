//! A handle to the socket under a connection, so that it can be shut down.
//!
//! lapin runs each connection on its own thread, which ends when the socket is closed. Dropping the connection, or the
//! future that connects, stops neither: if the peer accepts but never answers, each attempt would leak a thread and a
//! socket.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Holds the socket of a connection attempt.
#[derive(Debug, Clone, Default)]
pub(super) struct SocketHandle(Arc<Mutex<SocketState>>);

#[derive(Debug, Default)]
struct SocketState {
    socket: Option<TcpStream>,
    is_shut_down: bool,
}

/// Shuts down the socket when dropped.
#[derive(Debug)]
pub(super) struct ShutdownOnDrop(SocketHandle);

impl SocketHandle {
    /// Returns a guard that shuts down the socket when it is dropped.
    pub(super) fn shutdown_on_drop(&self) -> ShutdownOnDrop {
        ShutdownOnDrop(self.clone())
    }

    /// Keeps a duplicate of a socket.
    ///
    /// # Errors
    /// Fails if the guard was dropped meanwhile: the socket must not be used.
    pub(super) fn keep(&self, socket: &impl AsFd) -> io::Result<()> {
        let duplicate = TcpStream::from(socket.as_fd().try_clone_to_owned()?);
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_shut_down {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        state.socket = Some(duplicate);
        Ok(())
    }
}

impl Drop for ShutdownOnDrop {
    fn drop(&mut self) {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_shut_down = true;
        if let Some(socket) = state.socket.take() {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
