//! `recall-relay spool show`.

use std::process::ExitCode;

use anyhow::bail;

use crate::cli::id_or_seq::IdOrSeq;
use crate::cli::output;
use crate::cli::receipt::lookup::{Located, Wanted};
use crate::cli::receipt::not_kept;
use crate::cli::receipt::report::Receipt;
use crate::cli::sinks::SinkPositions;
use crate::config::Config;
use crate::spool::Inspector;

/// Print one event, and whether each sink has confirmed it
///
/// Reads the spool without changing it, beside a running relay or without one. The exit code is 1 if the event is not
/// kept.
#[derive(Debug, clap::Args)]
pub(in crate::cli::spool) struct ShowArgs {
    /// Id of the event, or its number
    #[arg(value_name = "ID|SEQ")]
    event: IdOrSeq,

    /// Print one line of JSON for each event with this id
    #[arg(long)]
    json: bool,
}

pub(in crate::cli::spool) fn show(args: &ShowArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let inspector = Inspector::open(&config.spool)?;
    let wanted = match args.event {
        IdOrSeq::Id(id) => Wanted::Id(id),
        IdOrSeq::Seq(seq) => Wanted::Seq(seq),
    };
    let located = Located::find(&inspector, &wanted)?;
    let positions = SinkPositions::read(&inspector, config)?;
    if located.events.is_empty() {
        bail!("{}", not_kept(&positions.overview));
    }
    let mut out = output::stdout();
    for (seq, event) in located.events.iter().rev() {
        let receipt = Receipt::new(*seq, event, &positions);
        if args.json {
            output::print_json(&mut out, &receipt)?;
        } else {
            receipt.print(&mut out, true)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
