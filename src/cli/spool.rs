//! `recall-relay spool`: maintains the spool of a relay that is not running.

use anyhow::bail;
use clap::Subcommand;

use crate::app;
use crate::config::Config;
use crate::{spool, telemetry};

#[derive(Debug, clap::Args)]
pub(super) struct SpoolArgs {
    #[command(subcommand)]
    command: SpoolCommand,
}

#[derive(Debug, Subcommand)]
enum SpoolCommand {
    /// Delete the cursor of a sink that is no longer configured, so that its unconfirmed events can be purged
    Forget {
        /// The sink's name: `kafka` or `rabbitmq`
        sink: String,
    },
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
pub(super) fn run(args: &SpoolArgs, config: &Config) -> anyhow::Result<()> {
    let _log = telemetry::start(&config.log)?;
    let SpoolCommand::Forget { sink } = &args.command;
    if app::sink_names(config).contains(&sink.as_str()) {
        bail!(
            "{sink} is configured: without its cursor it would publish every event again; remove it from the \
             configuration first"
        );
    }
    if !spool::forget(&config.spool, sink)? {
        let path = config.spool.path.display();
        bail!("spool {path} has no cursor of a sink `{sink}`; use `kafka` or `rabbitmq`");
    }
    println!("deleted the cursor of {sink}; its unconfirmed events are no longer pinned");
    Ok(())
}
