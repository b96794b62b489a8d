//! The socket under a connection, kept so that it can be cut.
//!
//! lapin runs each connection on a thread of its own, which ends when the socket does. To drop the future
//! that connects, or the connection, stops neither: with a peer that accepts and says nothing, each attempt
//! would leave a thread and a socket behind.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Whoever connects keeps the socket in this.
#[derive(Debug, Clone, Default)]
pub(super) struct SocketHandle(Arc<Mutex<SocketState>>);

#[derive(Debug, Default)]
struct SocketState {
    socket: Option<TcpStream>,
    is_shut_down: bool,
}

/// Cuts the line when dropped.
#[derive(Debug)]
pub(super) struct ShutdownOnDrop(SocketHandle);

impl SocketHandle {
    /// The line is cut when what this returns is dropped.
    pub(super) fn shutdown_on_drop(&self) -> ShutdownOnDrop {
        ShutdownOnDrop(self.clone())
    }

    /// Keeps a duplicate of a socket.
    ///
    /// # Errors
    /// Fails where the line has been cut meanwhile: the socket is not to be used.
    pub(super) fn keep(&self, socket: &impl AsFd) -> io::Result<()> {
        let duplicate = TcpStream::from(socket.as_fd().try_clone_to_owned()?);
        let mut end = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if end.is_shut_down {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        end.socket = Some(duplicate);
        Ok(())
    }
}

impl Drop for ShutdownOnDrop {
    fn drop(&mut self) {
        let mut end = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        end.is_shut_down = true;
        if let Some(socket) = end.socket.take() {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
