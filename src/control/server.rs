//! The relay's side of the control socket.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Uid, geteuid};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::protocol::{
    self, ControlCommand, DeadLetterKey, LONGEST_REQUEST, Progress, RelayStatus, Reply, SinkStatus,
};
use super::socket::SocketFile;
use crate::event::{Seq, UnixMillis};
use crate::forwarder::{Health, Resend, ResendEnd, ResendProgress, ResendSource, SinkHandle};
use crate::spool::Spool;

/// Connections that are served at the same time.
const CONNECTIONS: usize = 4;

/// How long a client may take to send its request, or to read a reply.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the progress of a command is reported.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// What the commands act on.
#[derive(Debug, Clone)]
pub struct Target {
    /// The spool.
    pub spool: Spool,
    /// The configured sinks.
    pub sinks: Vec<SinkHandle>,
}

/// The control socket of a running relay. Dropping it removes the file.
#[derive(Debug)]
pub struct ControlServer {
    file: SocketFile,
    listener: UnixListener,
    target: Target,
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // The next start would remove it, too.
        let _ = self.file.remove();
    }
}

impl ControlServer {
    /// Listens on the socket beside the spool, which this process has open. If that is not possible, logs a warning: the
    /// relay runs without it.
    #[must_use]
    pub fn bind(target: Target) -> Option<Self> {
        let opened = SocketFile::of(target.spool.path()).and_then(|file| {
            let listener = UnixListener::from_std(file.bind()?)?;
            Ok((file, listener))
        });
        match opened {
            Ok((file, listener)) => Some(Self {
                file,
                listener,
                target,
            }),
            Err(error) => {
                let spool = target.spool.path().display();
                warn!(
                    code = "control_socket_unavailable", %spool, %error,
                    "control socket beside the spool could not be created: while the relay runs, `recall-relay spool \
                     replay`, `spool dead-letters retry`, `spool dead-letters drop` and `spool forget` do not work, \
                     and other commands do not show the state of the sinks; fix the cause and restart the relay"
                );
                None
            }
        }
    }

    /// Serves clients until `stop` is cancelled.
    pub async fn serve(self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    debug!(%error, "could not accept a connection to the control socket");
                    // The process may have no free descriptors: do not spin.
                    tokio::time::sleep(REPORT_EVERY).await;
                    continue;
                }
            };
            let (target, permits) = (self.target.clone(), Arc::clone(&permits));
            connections.spawn(async move {
                let Ok(_permit) = permits.try_acquire() else {
                    let reason =
                        format!("{CONNECTIONS} other commands are connected; try again later");
                    return refuse(stream, reason).await;
                };
                if let Err(refusal) = check_peer(&stream) {
                    return refuse(stream, refusal).await;
                }
                if let Err(error) = serve(stream, &target).await {
                    debug!(%error, "connection to the control socket has failed");
                }
            });
        }
        // Commands that are under way end with their connections.
        connections.shutdown().await;
    }
}

/// Only the relay's own user and root may use the socket.
fn check_peer(stream: &UnixStream) -> Result<(), String> {
    let uid = stream.peer_cred().map(|peer| Uid::from_raw(peer.uid()));
    match uid {
        Ok(uid) if uid == geteuid() || uid.is_root() => Ok(()),
        uid => {
            let uid = uid.map_or_else(|error| error.to_string(), |uid| uid.to_string());
            warn!(
                code = "control_refused",
                uid,
                "a process of another user has connected to the control socket and was refused; check the permissions \
                 of the spool's folder"
            );
            Err("only the relay's own user and root may do this".to_owned())
        }
    }
}

async fn refuse(mut stream: UnixStream, reason: String) {
    let _ = send(&mut stream, &Reply::Failed { reason }).await;
}

/// Serves one connection: reads the request, and sends its replies.
///
/// # Errors
/// Fails if the client is too slow, or gone.
pub async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, target: &Target) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::new(reader).take(LONGEST_REQUEST);
    let mut line = Vec::new();
    timeout(CLIENT_TIMEOUT, reader.read_until(b'\n', &mut line)).await??;
    let command = match protocol::parse_request(&line) {
        Ok(command) => command,
        Err(reason) => return send(&mut writer, &Reply::Failed { reason }).await,
    };
    match command {
        ControlCommand::Status => send(&mut writer, &Reply::Status(status(target))).await,
        ControlCommand::Replay { sink, from_seq } => {
            let from = Seq(from_seq);
            let source = ResendSource::Replay { from };
            resend(target, &sink, source, reader.into_inner(), &mut writer).await
        }
        ControlCommand::Retry { sink, seqs } => {
            let seqs: BTreeSet<Seq> = seqs.into_iter().map(Seq).collect();
            let source = ResendSource::Retry { seqs };
            resend(target, &sink, source, reader.into_inner(), &mut writer).await
        }
        ControlCommand::Drop { dead_letters } => {
            let reply = drop_dead_letters(target, dead_letters).await;
            send(&mut writer, &reply).await
        }
        ControlCommand::Forget { sink } => {
            let reply = forget(target, sink).await;
            send(&mut writer, &reply).await
        }
    }
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), reply: &Reply) -> io::Result<()> {
    let line = protocol::encode_reply(reply);
    timeout(CLIENT_TIMEOUT, writer.write_all(&line)).await?
}

fn failed(reason: impl Into<String>) -> Reply {
    let reason = reason.into();
    Reply::Failed { reason }
}

fn status(target: &Target) -> RelayStatus {
    let refusing = target.spool.status().refusing;
    RelayStatus {
        refusing: refusing.map(|reason| reason.to_string()),
        sinks: target.sinks.iter().map(sink_status).collect(),
    }
}

fn sink_status(sink: &SinkHandle) -> SinkStatus {
    let (state, reason, since) = match sink.state.health() {
        Health::Starting => ("starting", None, None),
        Health::Up => ("up", None, None),
        Health::Down { reason, since } => ("down", Some(reason), Some(since)),
    };
    let since = since.and_then(UnixMillis::of);
    let resending = sink.resends.running();
    SinkStatus {
        sink: sink.state.sink().to_owned(),
        state: state.to_owned(),
        reason,
        since: since.map(|since| since.to_string()),
        confirmed_seq: sink.cursor.position().0,
        resending: resending.map(|progress| progress_of(&progress, sink)),
    }
}

fn progress_of(progress: &ResendProgress, sink: &SinkHandle) -> Progress {
    let sink_down = match sink.state.health() {
        Health::Down { reason, .. } => Some(reason),
        Health::Starting | Health::Up => None,
    };
    Progress {
        done: progress.confirmed,
        total: progress.total,
        skipped: progress.skipped,
        refused: progress.refused,
        seq: progress.position.0,
        sink_down,
    }
}

/// Has a sink send events again, and reports the progress. Ends if the client is gone.
async fn resend(
    target: &Target,
    name: &str,
    source: ResendSource,
    mut reader: impl AsyncRead + Unpin,
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let Some(sink) = target.sinks.iter().find(|sink| sink.state.sink() == name) else {
        let reason = format!(
            "the running relay has no sink {name}; it has {}",
            sinks(target)
        );
        return send(writer, &failed(reason)).await;
    };
    let mut resend = match sink.resends.request(source) {
        Ok(resend) => resend,
        Err(error) => return send(writer, &failed(error.to_string())).await,
    };
    let mut report = interval(REPORT_EVERY);
    let mut byte = [0];
    let current = resend.progress.clone();
    loop {
        tokio::select! {
            ended = end_of(&mut resend) => {
                let reply = match ended {
                    Some(ResendProgress { end: Some(ResendEnd::Stopped(reason)), position, confirmed, .. }) => {
                        failed(format!("stopped at event {position}, after {confirmed} events: {reason}"))
                    }
                    Some(progress) => Reply::Done(progress_of(&progress, sink)),
                    None => failed("the sink has stopped publishing; restart the relay"),
                };
                return send(writer, &reply).await;
            }
            // A client sends nothing after its request: this completes when it is gone.
            _ = reader.read(&mut byte) => return Ok(()),
            _ = report.tick() => {
                let progress = progress_of(&current.borrow().clone(), sink);
                send(writer, &Reply::Progress(progress)).await?;
            }
        }
    }
}

/// Waits for the end of a resend; `None` if the forwarder has ended without reporting one. Cancel safe.
async fn end_of(resend: &mut Resend) -> Option<ResendProgress> {
    let ended = resend.progress.wait_for(|progress| progress.end.is_some());
    ended.await.ok().map(|progress| progress.clone())
}

/// The names of the sinks, for people.
fn sinks(target: &Target) -> String {
    let names: Vec<&str> = target.sinks.iter().map(|sink| sink.state.sink()).collect();
    names.join(" and ")
}

async fn drop_dead_letters(target: &Target, dead_letters: Vec<DeadLetterKey>) -> Reply {
    let total = dead_letters.len() as u64;
    let keys: Vec<(String, Seq)> = dead_letters
        .into_iter()
        .map(|key| (key.sink, Seq(key.seq)))
        .collect();
    let named: Vec<String> = keys
        .iter()
        .map(|(sink, seq)| format!("{sink} {seq}"))
        .collect();
    match target.spool.remove_dead_letters(keys).await {
        Ok(done) => {
            warn!(
                code = "dead_letters_dropped",
                events = done,
                dead_letters = named.join(", "),
                "dead letters were deleted by a command; no subscriber receives them"
            );
            Reply::Done(Progress {
                done,
                total,
                skipped: total - done,
                ..Progress::default()
            })
        }
        Err(error) => failed(error.to_string()),
    }
}

async fn forget(target: &Target, name: String) -> Reply {
    if target.sinks.iter().any(|sink| sink.state.sink() == name) {
        return failed(protocol::configured(&name));
    }
    match target.spool.forget(name.clone()).await {
        Ok(deleted) => {
            if deleted {
                info!(
                    code = "sink_forgotten",
                    sink = name,
                    "cursor of a removed sink was deleted by a command; its unconfirmed events are no longer pinned"
                );
            }
            Reply::Done(Progress {
                done: deleted.into(),
                total: 1,
                ..Progress::default()
            })
        }
        Err(error) => failed(error.to_string()),
    }
}
