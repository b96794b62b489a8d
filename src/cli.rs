//! The command line.

mod check;
mod config;
mod event_view;
mod examples;
mod filter;
mod id_or_seq;
mod manual;
mod open_files;
mod output;
mod passed_sockets;
mod progress;
mod ready;
mod receipt;
mod run;
mod search;
mod send;
mod sinks;
mod spool;
mod tail;
mod when;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{FromArgMatches as _, Parser, Subcommand, ValueHint};

use self::passed_sockets::WrongSocket;
use crate::config::{ConfigError, Loaded};
use crate::spool::OpenError;
use crate::telemetry::{self, chain};

/// The command failed.
const FAILED: u8 = 1;

/// `EX_CONFIG` of sysexits.h: the configuration or a passed socket is unusable, or the spool is of a newer version.
const BAD_CONFIGURATION: u8 = 78;

/// Stores Tencent Cloud IM recall callbacks on disk, answers them, and publishes each one as an event to Kafka or
/// RabbitMQ.
#[derive(Debug, Parser)]
#[command(name = "recall-relay", version, max_term_width = 100)]
struct Cli {
    /// TOML file with settings; `RECALL_…` environment variables override it
    #[arg(long, env = "RECALL_CONFIG", global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<OsString>,
    #[command(subcommand)]
    command: Option<CliCommand>,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Accept callbacks and publish events [default]
    Run,
    /// Ask the running relay whether it is ready; for container health checks
    Ready,
    /// Print the settings that a start would use and the source of each; secrets are hidden
    Config,
    Check(check::CheckArgs),
    Send(Box<send::SendArgs>),
    Tail(tail::TailArgs),
    Where(receipt::WhereArgs),
    Spool(spool::SpoolArgs),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}

/// Runs the program with these arguments; the first one is the program's name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match parse(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            if let Some(error) = error.downcast_ref() {
                return usage(error);
            }
            // `recall-relay config | head -1` has what it wanted.
            if output::is_closed(&error) {
                return ExitCode::SUCCESS;
            }
            print_error(&error);
            ExitCode::from(exit_code(&error))
        }
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = examples::command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The exit code for an error. A supervisor need not restart the relay if the configuration or the version is wrong.
fn exit_code(error: &anyhow::Error) -> u8 {
    let is_permanent = error.is::<ConfigError>()
        || error.is::<WrongSocket>()
        || matches!(error.downcast_ref(), Some(OpenError::Newer { .. }));
    if is_permanent {
        BAD_CONFIGURATION
    } else {
        FAILED
    }
}

/// Prints clap's message and returns clap's exit code: 0 for help and version, 2 for bad usage.
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(FAILED))
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let path = cli.config.map(PathBuf::from);
    let file = path.clone();
    let load = move || Loaded::load(file.as_deref(), std::env::vars_os());
    match cli.command.unwrap_or(CliCommand::Run) {
        CliCommand::Run => return Ok(run::run(load)),
        CliCommand::Ready => {
            let admin = Loaded::load_admin(path.as_deref(), std::env::vars_os())?;
            ready::run(&admin)
        }
        CliCommand::Config => config::run(&load()?),
        CliCommand::Check(args) => return check::run(args, load()),
        CliCommand::Send(args) => runtime()?.block_on(send::run(*args)),
        CliCommand::Tail(args) => tail::run(args, &load()?.config),
        CliCommand::Where(args) => return receipt::run(args, &load()?.config),
        CliCommand::Spool(args) => return spool::run(args, &load()?.config),
        CliCommand::Completions(args) => manual::completions(&args),
        CliCommand::Man(args) => manual::man(&args),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// The error for arguments of a command that conflict in a way that clap's attributes cannot express.
fn bad_usage<A: clap::Args>(command: &'static str, kind: ErrorKind, problem: &str) -> clap::Error {
    A::augment_args(clap::Command::new(command)).error(kind, problem)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
}

/// Prints why a command failed.
fn print_error(error: &anyhow::Error) {
    telemetry::say(&format!("recall-relay: {}", chain(error.as_ref())));
}
