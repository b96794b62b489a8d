//! `recall-relay spool`: looks into the spool, and changes it.

mod dead_letters;
mod forget;
mod inspect;
mod replay;
mod resending;

use std::process::ExitCode;

use clap::Subcommand;

use crate::config::Config;

/// Look into the spool, beside a running relay or without one, and change it.
#[derive(Debug, clap::Args)]
pub(super) struct SpoolArgs {
    #[command(subcommand)]
    command: SpoolCommand,
}

#[derive(Debug, Subcommand)]
enum SpoolCommand {
    Status(inspect::StatusArgs),
    List(inspect::ListArgs),
    Show(inspect::ShowArgs),
    Replay(replay::ReplayArgs),
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    Forget(forget::ForgetArgs),
}

pub(super) fn run(args: SpoolArgs, config: &Config) -> anyhow::Result<ExitCode> {
    match args.command {
        SpoolCommand::Status(args) => inspect::status(&args, config),
        SpoolCommand::List(args) => inspect::list(args, config),
        SpoolCommand::Show(args) => inspect::show(&args, config),
        SpoolCommand::Replay(args) => replay::run(&args, config),
        SpoolCommand::DeadLetters(command) => dead_letters::run(command, config),
        SpoolCommand::Forget(args) => forget::run(&args, config),
    }
}
