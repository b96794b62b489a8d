//! Sockets that systemd passes to the relay (`sd_listen_fds(3)`). systemd keeps them open while the relay restarts, so
//! that connections wait in them instead of being refused.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use listenfd::ListenFd;

use crate::app::PassedSockets;

/// Why a passed socket cannot be used, and what to change in its unit.
#[derive(Debug, thiserror::Error)]
pub(super) enum WrongSocket {
    #[error(
        "systemd passed the socket `{0}`, which is not a listening TCP socket: in its unit, set ListenStream= to an IP \
         address and a port, and do not set Accept=yes"
    )]
    NotListening(String),
    #[error(
        "systemd passed a socket with the unknown name `{0}`: in its unit, set FileDescriptorName= to `callbacks` or \
         `admin`"
    )]
    UnknownName(String),
    #[error(
        "systemd passed two sockets for {0}: keep one ListenStream= ([::]:8080 accepts IPv4, too); a socket for health \
         and metrics needs a unit of its own with FileDescriptorName=admin"
    )]
    Two(&'static str),
}

/// Takes the sockets that were passed to this process, if any. Removes the variables that announce them, so no other
/// thread may run yet.
///
/// # Errors
/// Fails if a socket is not usable.
pub(super) fn take() -> Result<PassedSockets, WrongSocket> {
    let names = std::env::var_os("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.to_string_lossy();
    let mut names = names.split(':');
    let mut passed = ListenFd::from_env();
    let mut sockets = PassedSockets::default();
    for index in 0..passed.len() {
        let name = names.next().unwrap_or_default();
        let (purpose, place) = match name {
            "admin" => ("health and metrics", &mut sockets.admin),
            "callbacks" => ("callbacks", &mut sockets.callbacks),
            name if is_default_name(name) => ("callbacks", &mut sockets.callbacks),
            unknown => return Err(WrongSocket::UnknownName(unknown.to_owned())),
        };
        let socket = passed.take_tcp_listener(index).ok().flatten();
        let socket = socket.and_then(listening);
        let socket = socket.ok_or_else(|| WrongSocket::NotListening(name.to_owned()))?;
        if place.replace(socket).is_some() {
            return Err(WrongSocket::Two(purpose));
        }
    }
    Ok(sockets)
}

/// Whether a unit has no `FileDescriptorName=`: systemd then uses the unit's own name, and `systemd-socket-activate`
/// none.
fn is_default_name(name: &str) -> bool {
    name.is_empty() || name == "unknown" || name.ends_with(".socket")
}

/// The socket, unless it is a connection: `Accept=yes` passes those.
fn listening(socket: TcpListener) -> Option<TcpListener> {
    let stream = TcpStream::from(OwnedFd::from(socket));
    let is_connection = stream.peer_addr().is_ok();
    (!is_connection).then(|| OwnedFd::from(stream).into())
}
