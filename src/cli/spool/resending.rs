//! Has the running relay send events again, and shows the progress.

use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::control::client::{self, Relay};
use crate::control::{ControlCommand, Progress, Reply};
use crate::spool::Config;
use crate::telemetry::escape;

/// The error for a reply that the command does not expect.
pub(super) const OTHER_ANSWER: &str =
    "the relay gave another kind of answer; use its own version of the program for commands";

/// How often the bar is drawn while nothing changes.
const TICK: Duration = Duration::from_millis(250);

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

/// Executes a command; returns when the broker has confirmed the last event. On a terminal, a bar shows the progress.
pub(super) fn execute(relay: Relay, command: &ControlCommand) -> anyhow::Result<Progress> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {human_pos} of {human_len}  {per_sec}  {eta} left  {msg}",
    )?);
    bar.enable_steady_tick(TICK);
    let outcome = relay.execute(command, |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done + progress.skipped + progress.refused);
        let reason = progress.sink_down.as_deref();
        bar.set_message(reason.map_or_else(String::new, |reason| {
            format!("sink is down: {}", escape(reason))
        }));
    });
    bar.finish_and_clear();
    match outcome? {
        Reply::Done(progress) => Ok(progress),
        _ => bail!(
            "the relay gave another kind of answer; use its own version of the program for commands"
        ),
    }
}
