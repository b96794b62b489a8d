//! `recall-relay spool dead-letters`: handles the dead letters that the spool keeps, because no broker accepted them.

mod batches;
mod change;
mod print;
mod selection;

use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};

use self::selection::Selection;
use crate::cli::id_or_seq::IdOrSeq;
use crate::config::Config;

/// Handle dead letters that the spool keeps, because not even the dead-letter topic or queue accepted them
#[derive(Debug, Subcommand)]
pub(super) enum DeadLettersCommand {
    List(ListArgs),
    Show(ShowArgs),
    Retry(RetryArgs),
    Drop(DropArgs),
}

/// List dead letters by sink, the oldest event first
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    sink: SinkArg,

    /// Print one line of JSON for each dead letter
    #[arg(long)]
    json: bool,
}

/// Print why an event was refused, and the event
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Id of the event, or its number
    #[arg(value_name = "ID|SEQ")]
    event: IdOrSeq,

    /// Print one line of JSON for each sink that refused the event
    #[arg(long)]
    json: bool,
}

/// Publish dead letters again, in the order of their events
#[derive(Debug, Args)]
pub(super) struct RetryArgs {
    #[command(flatten)]
    selection: Selection,
}

/// Delete dead letters: no subscriber gets their events
#[derive(Debug, Args)]
pub(super) struct DropArgs {
    #[command(flatten)]
    selection: Selection,

    /// Delete them without a question
    #[arg(long)]
    yes: bool,
}

/// Selects a sink. It need not be configured.
#[derive(Debug, Args)]
struct SinkArg {
    /// Only dead letters of this sink
    #[arg(long, value_parser = PossibleValuesParser::new(["kafka", "rabbitmq"]))]
    sink: Option<String>,
}

pub(super) fn run(command: DeadLettersCommand, config: &Config) -> anyhow::Result<ExitCode> {
    match command {
        DeadLettersCommand::List(args) => print::list(args, config),
        DeadLettersCommand::Show(args) => print::show(&args, config),
        DeadLettersCommand::Retry(args) => change::retry(&args.selection, config),
        DeadLettersCommand::Drop(args) => change::drop(&args.selection, args.yes, config),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct DeadLetters {
        #[command(subcommand)]
        command: DeadLettersCommand,
    }

    fn is_accepted(arguments: &str) -> bool {
        let arguments = ["dead-letters"]
            .into_iter()
            .chain(arguments.split_whitespace());
        DeadLetters::try_parse_from(arguments).is_ok()
    }

    #[test]
    fn dead_letters_are_changed_only_if_they_are_named_or_all() {
        let id = "e623ed2b-c5ef-5b1b-a59b-1584672e69fa";
        for command in ["retry", "drop"] {
            for right in [
                "1",
                &format!("1 {id} 2"),
                "--all",
                "--all --sink kafka",
                "1 --sink rabbitmq",
            ] {
                assert!(is_accepted(&format!("{command} {right}")), "{right}");
            }
            for wrong in [
                "",
                "--all 1",
                "--sink kafka",
                "--all --sink kafak",
                "first",
                "-- -1",
            ] {
                assert!(!is_accepted(&format!("{command} {wrong}")), "{wrong}");
            }
        }
        assert!(is_accepted("drop 1 --yes"));
        assert!(!is_accepted("retry 1 --yes"));
        assert!(!is_accepted("show"));
        assert!(!is_accepted("show 1 2"));
        assert!(is_accepted("list --sink kafka --json"));
        assert!(!is_accepted("list 1"));
    }
}
