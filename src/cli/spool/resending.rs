//! Has the running relay send events again, and shows the progress.

use anyhow::{Context as _, bail};

use crate::cli::progress::{ProgressLine, ProgressRate};
use crate::control::client::{self, Relay};
use crate::control::{ControlCommand, Progress, Reply};
use crate::spool::Config;
use crate::telemetry::escape;

/// The error for a reply that the command does not expect.
pub(super) const OTHER_ANSWER: &str =
    "the relay gave another kind of answer; use its own version of the program for commands";

/// Connects to the running relay, which alone can publish.
pub(super) fn connect(config: &Config) -> anyhow::Result<Relay> {
    let path = config.path.display();
    client::connect(&config.path)?.with_context(|| {
        format!(
            "no relay answers on the control socket of spool {path}: only a running relay publishes events; start it, \
             then run the command again"
        )
    })
}

/// Executes a command; returns when the broker has confirmed the last event. On a terminal, a line shows the progress.
pub(super) fn execute(relay: Relay, command: &ControlCommand) -> anyhow::Result<Progress> {
    let line = ProgressLine::new(Some(0), ProgressRate::Estimated);
    let outcome = relay.execute(command, |progress| {
        line.set_total(progress.total);
        line.set_done(progress.done + progress.skipped + progress.refused);
        let reason = progress.sink_down.as_deref();
        line.set_message(reason.map_or_else(String::new, |reason| {
            format!("sink is down: {}", escape(reason))
        }));
    });
    drop(line);
    match outcome? {
        Reply::Done(progress) => Ok(progress),
        _ => bail!(OTHER_ANSWER),
    }
}
