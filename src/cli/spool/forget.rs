//! `recall-relay spool forget`: deletes the cursor of a sink that is no longer configured.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::bail;

use super::resending;
use crate::cli::output;
use crate::config::Config;
use crate::control::client::{self, Reached};
use crate::control::{self, ControlCommand, Reply};

/// Delete the cursor of a sink that is no longer configured, so that its unconfirmed events can be purged
///
/// They are never published to that sink then.
#[derive(Debug, clap::Args)]
pub(super) struct ForgetArgs {
    /// The removed sink: `kafka` or `rabbitmq`
    sink: String,
}

pub(super) fn run(args: &ForgetArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let sink = &args.sink;
    // The settings may be newer than those of the running relay, which checks its own.
    if config.sink_names().contains(&sink.as_str()) {
        bail!(control::configured(sink));
    }
    let existed = match client::reach(&config.spool)? {
        Reached::Running(relay) => {
            let command = ControlCommand::Forget { sink: sink.clone() };
            match relay.execute(&command, |_| ())? {
                Reply::Done(progress) => progress.done > 0,
                _ => bail!(resending::OTHER_ANSWER),
            }
        }
        Reached::Stopped(mut offline) => offline.forget(sink)?,
    };
    if !existed {
        let path = config.spool.path.display();
        bail!(
            "spool {path} has no cursor of a sink `{sink}`; `recall-relay spool status` lists its sinks"
        );
    }
    writeln!(
        output::stdout(),
        "deleted the cursor of {sink}; its unconfirmed events are no longer pinned"
    )?;
    Ok(ExitCode::SUCCESS)
}
