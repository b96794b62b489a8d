//! A command's side of the control socket.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};

use super::protocol::{self, ControlCommand, LONGEST_REPLY, RelayStatus, Reply};
use super::socket::SocketFile;
use crate::spool::{Config, Offline, OpenError};

/// How long the relay may take to reply. It reports the progress of long commands more often.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait for a relay that is starting or stopping: it holds the spool's lock, but does not listen.
const REACH_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to try again.
const RETRY: Duration = Duration::from_millis(100);

/// Who has the spool.
#[derive(Debug)]
pub enum Reached {
    /// A relay runs on it.
    Running(Relay),
    /// No relay runs, and none can start until this is dropped.
    Stopped(Box<Offline>),
}

/// A connection to the running relay, for one command.
#[derive(Debug)]
pub struct Relay(BufReader<UnixStream>);

/// The state of the relay that runs on this spool; `None` if none answers. Blocks for ten seconds at most.
#[must_use]
pub fn status(database: &Path) -> Option<RelayStatus> {
    let relay = connect(database).ok()??;
    match relay.execute(&ControlCommand::Status, |_| ()).ok()? {
        Reply::Status(status) => Some(status),
        _ => None,
    }
}

/// Connects to the relay that runs on this spool; `None` if none listens.
///
/// # Errors
/// Fails if the socket cannot be used, for example because of its permissions.
pub fn connect(database: &Path) -> anyhow::Result<Option<Relay>> {
    let Ok(database) = database.canonicalize() else {
        return Ok(None);
    };
    let file =
        SocketFile::of(&database).context("could not use the control socket of the spool")?;
    let stream = file.connect().with_context(|| {
        format!(
            "could not connect to the control socket {}; run this as the relay's user",
            file.path().display()
        )
    })?;
    let Some(stream) = stream else {
        return Ok(None);
    };
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
    Ok(Some(Relay(BufReader::new(stream))))
}

/// Connects to the running relay, or opens the spool if none runs. Waits for a relay that is starting. Blocks.
///
/// # Errors
/// Fails if neither is possible.
pub fn reach(config: &Config) -> anyhow::Result<Reached> {
    let deadline = Instant::now() + REACH_TIMEOUT;
    loop {
        if let Some(relay) = connect(&config.path)? {
            return Ok(Reached::Running(relay));
        }
        match Offline::open(config) {
            Ok(offline) => return Ok(Reached::Stopped(Box::new(offline))),
            Err(OpenError::Locked(_)) if Instant::now() < deadline => thread::park_timeout(RETRY),
            Err(error @ OpenError::Locked(_)) => {
                return Err(error).context(
                    "the process that has the spool open does not answer on its control socket; if it is a relay, see \
                     its log for `control_socket_unavailable`",
                );
            }
            Err(error) => return Err(error.into()),
        }
    }
}

impl Relay {
    /// Has the relay execute a command; returns its last reply, which is not [`Reply::Progress`] or [`Reply::Failed`].
    ///
    /// # Errors
    /// Returns why the command failed.
    pub fn execute(
        mut self,
        command: &ControlCommand,
        mut progress: impl FnMut(&protocol::Progress),
    ) -> anyhow::Result<Reply> {
        let request = protocol::encode_request(command);
        // A relay that refuses the connection replies without reading the request.
        let written = self.0.get_mut().write_all(&request);
        loop {
            let reply = match (self.next(), &written) {
                (Err(_), Err(error)) => {
                    bail!("the request could not be sent to the relay: {error}")
                }
                (reply, _) => reply?,
            };
            match reply {
                Reply::Progress(now) => progress(&now),
                Reply::Failed { reason } => bail!(reason),
                reply => return Ok(reply),
            }
        }
    }

    fn next(&mut self) -> anyhow::Result<Reply> {
        let mut line = Vec::new();
        let read = self
            .0
            .by_ref()
            .take(LONGEST_REPLY)
            .read_until(b'\n', &mut line);
        match read {
            Ok(0) => bail!("the relay has closed the connection: it is stopping, or was killed"),
            Ok(_) => protocol::parse_reply(&line).map_err(|reason| anyhow!(reason)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!(
                    "the relay did not answer within {} s",
                    REPLY_TIMEOUT.as_secs()
                )
            }
            Err(error) => Err(error).context("the connection to the relay has failed"),
        }
    }
}
