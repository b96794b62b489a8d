//! `recall-relay tail`: prints events as they come from the configured broker.

mod line;
mod source;

use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::line::Lines;
use self::source::{Subscribe, TailSink};
use super::filter::{ConversationArgs, KindArgs};
use super::when::When;
use crate::config::Config;
use crate::event::Kind;

/// How many items may wait to be printed; if more do, the broker waits.
const WAITING_ITEMS: usize = 1000;

/// How long closing the connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often to check whether standard output is still read.
const CHECK_OUTPUT_EVERY: Duration = Duration::from_millis(200);

/// Print events as they come from the configured broker, until Ctrl-C
///
/// Takes no event from anybody. Dead letters are elsewhere and are not printed.
#[derive(Debug, clap::Args)]
pub(super) struct TailArgs {
    /// Broker to subscribe to; needed only if both are configured
    #[arg(value_enum, value_name = "SINK")]
    sink: Option<TailSink>,

    /// Print each event as it is published, as a line of JSON
    #[arg(long)]
    json: bool,

    /// Kafka: begin with the events that were published since then: a time in RFC 3339, or a duration back such as `2h`
    /// [default: events from now on]
    #[arg(long, value_name = "WHEN")]
    since: Option<When>,

    /// Kafka: begin with the oldest events that the cluster keeps
    #[arg(long, conflicts_with = "since")]
    from_beginning: bool,

    /// RabbitMQ: subscribe even if the relay has no queue of its own. If no other queue is bound, RabbitMQ then
    /// confirms events that only the temporary queue gets, and they are lost
    #[arg(long)]
    force: bool,

    /// Log in as this user instead of the relay's
    #[arg(long, value_name = "NAME", requires = "password_file")]
    user: Option<String>,

    /// File that contains the password of --user
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,

    #[command(flatten)]
    conversation: ConversationArgs,
    #[command(flatten)]
    kind: KindArgs,
}

/// Subscribes and prints until SIGINT or SIGTERM, or until nobody reads standard output any more.
///
/// # Errors
/// The arguments do not fit the configuration, or the broker cannot be subscribed to.
pub(super) fn run(args: TailArgs, config: &Config) -> anyhow::Result<()> {
    let kind = args.kind.kind();
    if kind == Some(Kind::Rejected) {
        return Err(bad_usage(
            "--kind rejected: rejected callbacks are dead letters, which are not published among the events; \
             `recall-relay spool list --kind rejected` shows those that are kept",
        ));
    }
    let subscribe = source::choose(&args, config)?;
    let mut filter = args.conversation.filter();
    filter.kind = kind;
    let runtime = super::runtime()?;
    let outcome = runtime.block_on(tail(subscribe, Lines::new(filter, args.json)));
    // A blocking task may be left: printing, if nobody reads, or a client that cannot be closed.
    runtime.shutdown_timeout(Duration::ZERO);
    outcome
}

/// The error for arguments that do not fit together or do not fit the configuration.
fn bad_usage(problem: &str) -> anyhow::Error {
    super::bad_usage::<TailArgs>("recall-relay tail", ErrorKind::ArgumentConflict, problem).into()
}

async fn tail(subscribe: Subscribe, lines: Lines) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let (items, received) = mpsc::channel(WAITING_ITEMS);
    // Both end if the other one does: `items` is closed, or has no sender any more.
    let subscription = subscribe(items, stop.clone());
    let printing = async {
        match spawn_blocking(move || lines.print(received)).await? {
            // Nobody reads any more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            printed => anyhow::Ok(printed?),
        }
    };
    let mut session = std::pin::pin!(async {
        let (subscribed, printed) = tokio::join!(subscription, printing);
        subscribed.and(printed)
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        outcome = &mut session => return outcome,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = output_closed() => {}
    }
    stop.cancel();
    // What fails now does not matter.
    let _ = timeout(CLOSE_TIMEOUT, session).await;
    Ok(())
}

/// Completes when nobody reads standard output any more. Otherwise that would be noticed only with the next event.
async fn output_closed() {
    loop {
        sleep(CHECK_OUTPUT_EVERY).await;
        let output = io::stdout();
        let mut output = [PollFd::new(output.as_fd(), PollFlags::empty())];
        let polled = poll(&mut output, PollTimeout::ZERO);
        let closed = PollFlags::POLLERR | PollFlags::POLLHUP;
        let events = output[0].revents().unwrap_or_else(PollFlags::empty);
        if polled.is_ok() && events.intersects(closed) {
            return;
        }
    }
}

/// Tells something on standard error.
fn tell(text: &str) -> io::Result<()> {
    writeln!(
        io::stderr(),
        "recall-relay: {}",
        crate::telemetry::escape(text)
    )
}
