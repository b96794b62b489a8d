//! `recall-relay send`: acts as the vendor against a running relay.
//!
//! Promises:
//! - no two callbacks recall the same message, even across runs; with `--first-seq` a run can be repeated byte
//!   for byte, except for the signature;
//! - the callbacks of a conversation are sent in order, each one after the previous one was answered or timed
//!   out;
//! - each callback is sent once: if the answer is not OK, or there is none, that is counted and not retried, as
//!   the vendor does by default;
//! - with `--rate`, the latency of a callback that had to wait for an earlier answer is measured from when it
//!   was due, so that a relay that stalls cannot hide the stall (coordinated omission). The latency of a
//!   callback that did not have to wait is measured from when it was sent: the timer may wake up two
//!   milliseconds late, and that is not the relay's fault. Callbacks that a stalled relay has held up until the end
//!   of the run are counted as unsent;
//! - memory use does not grow with the number of callbacks or conversations.
//!
//! It does not check what reaches the broker.

mod callbacks;
mod connection;
mod latencies;
mod live;
mod order;
mod report;
mod request;
mod selection;
mod summary;
mod traffic;

#[cfg(test)]
mod tests;

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::ValueHint;
use hyper::http::uri::Scheme;
use jiff::Timestamp;

pub(super) use self::callbacks::Callback;
use self::callbacks::{Callbacks, Clock};
pub(super) use self::connection::{Answer as HttpAnswer, Connection};
use self::report::SendReport;
pub(super) use self::request::{Endpoint, Requests};
use self::selection::CommandSelection;
use self::summary::RightAnswer;
pub(super) use self::summary::answer_problem;
use self::traffic::Traffic;
use super::output;
use crate::callback::Token;
use crate::setting::{self, ClientTls, List, Secret, Timeout, system_authorities};
use crate::vendor::{BodyFormat, EventTimeForm, PayloadVersion};

/// Some JSON parsers do not read larger numbers exactly.
const MAX_FIRST_SEQ: u64 = 1 << 53;

/// Act as the vendor: send callbacks to a running relay and report the answers.
#[derive(Debug, Clone, clap::Args)]
pub struct SendArgs {
    /// URL of the relay's callback listener; its query parameters are kept
    #[arg(long, default_value = "http://127.0.0.1:8080/")]
    url: Endpoint,

    /// The application that the callbacks belong to; of a list, the first is used
    #[arg(long, env = "RECALL_SDK_APP_IDS", value_name = "ID", value_parser = first_app_id)]
    sdk_app_id: u64,

    /// Token that signs each callback; other users can see it in the process list. Without --token and
    /// --token-file: `RECALL_AUTH__TOKENS` or `RECALL_AUTH__TOKENS_FILE`; without those: no signature
    #[arg(long, conflicts_with = "token_file")]
    token: Option<Secret>,

    /// File that contains the token; of a list, the first is used
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    token_file: Option<PathBuf>,

    /// For https://: PEM file with authorities to trust in addition to the system's
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "TLS")]
    ca: Option<PathBuf>,

    /// For https://: PEM file with the client's certificate
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "key", help_heading = "TLS")]
    cert: Option<PathBuf>,

    /// For https://: PEM file with the private key of --cert
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "cert", help_heading = "TLS")]
    key: Option<PathBuf>,

    /// Kind of callback to send: one of these, or any command that the vendor documents, such as
    /// `State.StateChange`
    #[arg(long, value_parser = selection::parser(), default_value = "group", value_name = "NAME",
          help_heading = "Callbacks")]
    command: CommandSelection,

    /// Version of the vendor's documentation that the bodies follow
    #[arg(long, value_enum, default_value_t = PayloadVersion::V3, value_name = "VERSION", help_heading = "Callbacks")]
    payload_version: PayloadVersion,

    /// Format of `EventTime`
    #[arg(long, value_enum, default_value_t = EventTimeForm::String, value_name = "FORM", help_heading = "Callbacks")]
    event_time: EventTimeForm,

    /// `Type` of the groups; if it is `Community`, each conversation is a topic
    #[arg(
        long,
        default_value = "Public",
        value_name = "TYPE",
        help_heading = "Callbacks"
    )]
    group_type: String,

    /// Recalled messages per callback; a C2C callback always has one
    #[arg(long, default_value_t = 1, value_name = "NUMBER", help_heading = "Callbacks",
          value_parser = clap::value_parser!(u64).range(1..=1000))]
    messages: u64,

    /// Conversations of each command, used in turn [default: as many as connections]
    #[arg(long, value_name = "NUMBER", help_heading = "Callbacks",
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    conversations: Option<u64>,

    /// First `MsgSeq` of every conversation; the same number produces the same callbacks
    /// [default: microseconds since 1970, different for each run]
    #[arg(long, value_name = "SEQ", help_heading = "Callbacks",
          value_parser = clap::value_parser!(u64).range(1..=MAX_FIRST_SEQ))]
    first_seq: Option<u64>,

    /// Number of callbacks to send [default: 1, or unlimited with --duration]
    #[arg(long, short = 'n', value_name = "NUMBER", help_heading = "Traffic",
          value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Stop after this time, such as `30s`, even if --count is not reached
    #[arg(long, value_name = "TIME", help_heading = "Traffic")]
    duration: Option<Timeout>,

    /// Callbacks per second on all connections together; if a callback is late because an earlier one was not
    /// answered in time, its latency is measured from when it was due [default: as fast as answers arrive]
    #[arg(long, value_name = "NUMBER", help_heading = "Traffic", value_parser = rate)]
    rate: Option<f64>,

    /// Connections to keep open; each sends one callback at a time
    #[arg(long, short = 'c', default_value_t = 1, value_name = "NUMBER", help_heading = "Traffic",
          value_parser = clap::value_parser!(u64).range(1..=65_535))]
    connections: u64,

    /// How long to wait for an answer; the vendor waits 2 seconds
    #[arg(
        long,
        default_value = "2s",
        value_name = "TIME",
        help_heading = "Traffic"
    )]
    timeout: Timeout,

    /// The relay hands commands other than recalls on to a backend (`upstream.url`): any of its answers is right if its
    /// status is 200, whatever it says
    #[arg(long, help_heading = "Report")]
    upstream: bool,

    /// Print the report as JSON
    #[arg(long, help_heading = "Report")]
    json: bool,

    /// Print the callbacks as curl commands instead of sending them
    #[arg(long, conflicts_with_all = ["duration", "rate", "json", "upstream"])]
    print: bool,
}

/// Sends the callbacks that `args` asks for and prints a summary on stdout, or only prints the callbacks.
///
/// Ctrl-C stops sending, but still waits for the answers to open requests. A second Ctrl-C ends it at once.
///
/// # Errors
/// Fails if the relay cannot be reached at the start, or if a callback was not answered with HTTP 200, OK and
/// `ErrorCode` 0; with a [`clap::Error`] if the options conflict.
pub async fn run(args: SendArgs) -> anyhow::Result<()> {
    let mut out = output::stdout_for(args.json);
    send(args, &mut out).await
}

async fn send(args: SendArgs, out: &mut (impl Write + Send)) -> anyhow::Result<()> {
    let token = token(&args)?;
    let conversations = args.conversations.unwrap_or(args.connections);
    if args.connections > conversations {
        let problem = format!(
            "--connections {} needs at least as many --conversations, not {conversations}: \
             a conversation keeps to one connection",
            args.connections
        );
        return Err(bad_usage(&problem).into());
    }
    let files = ClientTls {
        ca: args.ca,
        cert: args.cert,
        key: args.key,
    };
    let tls = if args.url.scheme == Scheme::HTTPS {
        let tls = files.client_config(system_authorities());
        Some(Arc::new(tls.map_err(|error| anyhow!("--{error}"))?))
    } else if files.is_set() {
        return Err(bad_usage("--ca, --cert and --key need an https:// URL").into());
    } else {
        None
    };
    // With `--duration` the time ends the run, unless `--count` does.
    let endless = args.duration.is_some();
    let count = args.count.unwrap_or(if endless { u64::MAX } else { 1 });
    let traffic = Traffic {
        callbacks: Callbacks {
            kinds: args.command.0,
            format: BodyFormat {
                version: args.payload_version,
                event_time: args.event_time,
                group_type: args.group_type,
            },
            conversations,
            messages: args.messages,
            first_seq: match args.first_seq {
                Some(first) => first,
                None => u64::try_from(Timestamp::now().as_microsecond())?,
            },
            clock: match args.first_seq {
                Some(_) => Clock::Repeatable,
                None => Clock::Now,
            },
        },
        requests: Requests {
            endpoint: args.url,
            sdk_app_id: args.sdk_app_id,
            token,
            tls: files,
        },
        tls,
        count,
        connections: args.connections,
        rate: args.rate,
        timeout: *args.timeout,
        right_for_others: if args.upstream {
            RightAnswer::AnyOfBackend
        } else {
            RightAnswer::Ok
        },
    };
    if args.print {
        return print(&traffic, out);
    }
    let duration = args.duration.map(|duration| *duration);
    let first_seq = traffic.callbacks.first_seq;
    let (summary, elapsed) = traffic.run(duration.unwrap_or(Duration::MAX)).await?;
    let report = SendReport {
        summary: &summary,
        elapsed,
        first_seq,
    };
    if args.json {
        output::print_json(out, &report.json())?;
    } else {
        writeln!(out, "{report}")?;
    }
    match summary.failed() {
        0 => Ok(()),
        failed => bail!(
            "{failed} of {} callbacks were not answered OK; the summary says why",
            summary.sent
        ),
    }
}

fn print(traffic: &Traffic, out: &mut impl Write) -> anyhow::Result<()> {
    for number in 0..traffic.count {
        let callback = traffic.callbacks.make(number)?;
        let now = u64::try_from(Timestamp::now().as_second())?;
        writeln!(out, "{}", traffic.requests.curl(&callback, now))?;
    }
    Ok(())
}

/// The error for options that conflict in a way that clap's attributes cannot express.
fn bad_usage(problem: &str) -> clap::Error {
    super::bad_usage::<SendArgs>(
        "recall-relay send",
        clap::error::ErrorKind::ArgumentConflict,
        problem,
    )
}

/// Finds the token: from the command line, otherwise from the relay's environment variables.
fn token(args: &SendArgs) -> anyhow::Result<Option<Secret>> {
    // Not clap's `env`: one of these variables would then override the other option or conflict with it.
    let named = args.token.is_some() || args.token_file.is_some();
    let (text, file) = if named {
        let text = args.token.as_ref().map(|token| token.expose().to_owned());
        (text, args.token_file.clone())
    } else {
        let text = env::var_os("RECALL_AUTH__TOKENS").map(OsString::into_string);
        let Ok(text) = text.transpose() else {
            bail!("RECALL_AUTH__TOKENS is not UTF-8; correct it, or use --token-file");
        };
        (
            text,
            env::var_os("RECALL_AUTH__TOKENS_FILE").map(PathBuf::from),
        )
    };
    let text = match (text, file) {
        (Some(text), _) => text,
        (None, Some(path)) => setting::read_text(&path)
            .map_err(|problem| anyhow!("token file {} {problem}", path.display()))?,
        (None, None) => return Ok(None),
    };
    let tokens: Result<List<Token>, _> = setting::clean(&text).parse();
    let tokens = tokens.map_err(|problem| anyhow!("the token {problem}"))?;
    let is_own = |token: &Token| token.application.is_none_or(|app| app == args.sdk_app_id);
    match tokens.0.into_iter().find(is_own) {
        Some(token) => Ok(Some(token.secret)),
        None => bail!(
            "there is no token for application {}; add one for it, or select another application with --sdk-app-id",
            args.sdk_app_id
        ),
    }
}

fn first_app_id(list: &str) -> Result<u64, String> {
    let ids: List<u64> = setting::clean(list).parse()?;
    Ok(ids[0])
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=10_000_000.0).contains(&rate) => Ok(rate),
        _ => Err("not a number from 0.001 to 10000000".to_owned()),
    }
}
