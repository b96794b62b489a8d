//! `recall-relay spool replay`: sends events again that the spool still holds.

use std::io::Write as _;
use std::process::ExitCode;
use std::str::FromStr;

use super::resending;
use crate::cli::output;
use crate::cli::sinks::SinkPositions;
use crate::cli::when::When;
use crate::config::Config;
use crate::control::ControlCommand;
use crate::event::{Seq, UnixMillis};
use crate::spool::{EventQuery, Inspector, SearchOrder};

/// Send events again that the spool still holds, in order and with the same ids
///
/// The running relay publishes every event that it keeps from there on, up to the newest that the sink has confirmed.
/// New events follow when that is done. The command returns when the broker has confirmed the last one. If it ends
/// earlier, for example by Ctrl-C, the replay stops, too.
///
/// Subscribers that drop ids that they know notice nothing.
#[derive(Debug, clap::Args)]
pub(super) struct ReplayArgs {
    /// Sink: `kafka`, `rabbitmq` or `stdout`
    sink: String,

    /// First event: a time in RFC 3339, a duration back such as `2h`, or a number such as `seq:1234`
    #[arg(long, value_name = "TIME")]
    since: Since,

    /// Print what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
}

/// The first event of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    Time(UnixMillis),
    Seq(Seq),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("seq:") {
            Some(number) => match number.parse() {
                Ok(seq) => Ok(Self::Seq(Seq(seq))),
                Err(_) => Err(format!("`{number}` is not the number of an event")),
            },
            None => match text.parse::<When>() {
                Ok(When(time)) => Ok(Self::Time(time)),
                Err(problem) => Err(format!("{problem}, nor a number such as `seq:1234`")),
            },
        }
    }
}

/// Events per second that a sink usually publishes at least, to estimate how long a replay takes.
const fn usual_rate(sink: &[u8]) -> u64 {
    match sink {
        b"rabbitmq" => 5_000,
        _ => 20_000,
    }
}

/// What a replay covers.
#[derive(Debug)]
struct Span {
    from: Seq,
    /// The newest event that the sink has confirmed: later ones are sent anyway.
    until: Seq,
    events: u64,
    /// When the first and the last of them were stored.
    stored: Option<(UnixMillis, UnixMillis)>,
    /// The oldest event kept.
    oldest: Seq,
}

pub(super) fn run(args: &ReplayArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let inspector = Inspector::open(&config.spool)?;
    let sink = &args.sink;
    let span = span(&inspector, config, sink, args.since)?;
    let mut out = output::stdout();
    if span.from < span.oldest && span.oldest <= span.until {
        writeln!(
            out,
            "events before {} are no longer kept and cannot be sent again",
            span.oldest
        )?;
    }
    if args.dry_run {
        print(&mut out, sink, &span)?;
        return Ok(ExitCode::SUCCESS);
    }
    let relay = resending::connect(&config.spool)?;
    let command = ControlCommand::Replay {
        sink: sink.clone(),
        from_seq: span.from.max(span.oldest).0,
    };
    let progress = resending::execute(relay, &command)?;
    writeln!(out, "{sink} has confirmed {} events again", progress.done)?;
    if progress.skipped > 0 {
        writeln!(
            out,
            "{} were not sent again: they were purged before their turn, or cannot be read",
            progress.skipped
        )?;
    }
    if progress.refused > 0 {
        writeln!(
            out,
            "{} were refused and are dead letters in the spool: see `recall-relay spool dead-letters list`",
            progress.refused
        )?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds out what a replay covers.
fn span(inspector: &Inspector, config: &Config, sink: &str, since: Since) -> anyhow::Result<Span> {
    let positions = SinkPositions::read(inspector, config)?;
    let (overview, until) = (&positions.overview, positions.named(sink)?.confirmed);
    let from = match since {
        Since::Seq(seq) => seq,
        Since::Time(time) => first_since(inspector, time)?.unwrap_or(overview.last.next()),
    };
    let first = from.max(overview.first);
    let stored = |seq: Seq| inspector.appended_after(Seq(seq.0.saturating_sub(1)));
    Ok(Span {
        from,
        until,
        events: overview.kept_within(Seq(first.0.saturating_sub(1)), until),
        stored: stored(first)?.zip(stored(until)?),
        oldest: overview.first,
    })
}

/// The first event that was stored at this time or later.
fn first_since(inspector: &Inspector, time: UnixMillis) -> anyhow::Result<Option<Seq>> {
    let mut search = inspector.search(EventQuery {
        since: Some(time),
        order: SearchOrder::OldestFirst,
        ..EventQuery::default()
    })?;
    while let Some(piece) = search.next_piece()? {
        if let Some(first) = piece.found.first() {
            return Ok(Some(first.seq));
        }
    }
    Ok(None)
}

fn print(out: &mut impl std::io::Write, sink: &str, span: &Span) -> std::io::Result<()> {
    if span.events == 0 {
        return writeln!(out, "no event would be sent to {sink} again");
    }
    let (first, last) = (span.from.max(span.oldest), span.until);
    writeln!(
        out,
        "{} events would be sent to {sink} again: {first} to {last}",
        span.events
    )?;
    if let Some((since, until)) = span.stored {
        writeln!(out, "stored from {since} to {until}")?;
    }
    let rate = usual_rate(sink.as_bytes());
    let wait = std::time::Duration::from_secs(span.events.div_ceil(rate));
    writeln!(
        out,
        "new events would wait for about {}, if {sink} takes {rate} events a second",
        humantime::format_duration(wait)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_is_a_number_or_a_time() {
        assert_eq!("seq:7".parse(), Ok(Since::Seq(Seq(7))));
        let time = UnixMillis::new(1_670_574_414_123).unwrap();
        assert_eq!("2022-12-09T08:26:54.123Z".parse(), Ok(Since::Time(time)));
        assert!(matches!("2h".parse(), Ok(Since::Time(_))));
        for wrong in ["", "7", "seq:", "seq:-1", "seq:x", "tomorrow"] {
            assert!(wrong.parse::<Since>().is_err(), "{wrong}");
        }
    }
}
