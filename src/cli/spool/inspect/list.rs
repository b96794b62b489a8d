//! `recall-relay spool list`.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::cli::event_view::{self, EventView};
use crate::cli::filter::{ConversationArgs, KindArgs};
use crate::cli::output::{self, Columns, fit};
use crate::cli::search::search_all;
use crate::cli::sinks::SinkPositions;
use crate::cli::when::When;
use crate::config::Config;
use crate::event::{Event, EventFilter, Seq, UnixMillis};
use crate::spool::{EventQuery, FoundEvent, Inspector, SearchOrder};
use crate::telemetry;

/// How many events a table shows unless a limit is set.
const TABLE_ROWS: u64 = 20;

/// A longer list is printed as several tables of this many rows, so that it is not collected in memory.
const ROWS_PER_TABLE: usize = 1000;

/// The columns that a cell may take: all cells, the number, the time and the space between them are 118 at most.
const CONVERSATION: usize = 26;
const MESSAGES: usize = 18;
const OPERATOR: usize = 14;

/// List events that the spool holds, newest first
///
/// Reads the spool without changing it, beside a running relay or without one.
#[derive(Debug, clap::Args)]
pub(in crate::cli::spool) struct ListArgs {
    /// Stored at this time or later: RFC 3339, or a duration back such as `2h`
    #[arg(long, value_name = "WHEN")]
    since: Option<When>,

    /// Stored at this time or earlier: RFC 3339, or a duration back such as `2h`
    #[arg(long, value_name = "WHEN")]
    until: Option<When>,

    /// Only events that a configured sink has not confirmed
    #[arg(long)]
    waiting: bool,

    /// With --waiting: only events that this sink has not confirmed
    #[arg(long, value_name = "SINK", requires = "waiting")]
    sink: Option<String>,

    /// Most events to list [default: 20, or with --json all]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    /// Print one line of JSON for each event
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    conversation: ConversationArgs,

    #[command(flatten)]
    kind: KindArgs,
}

/// A line of JSON; documented in docs/reference/cli-json.md.
#[derive(Debug, Serialize)]
struct ListedEvent<'a> {
    seq: u64,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored_at: Option<UnixMillis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a RawValue>,
}

pub(in crate::cli::spool) fn list(args: ListArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let inspector = Inspector::open(&config.spool)?;
    let first = if args.waiting {
        let positions = SinkPositions::read(&inspector, config)?;
        Some(confirmed(&positions, args.sink.as_deref())?.next())
    } else {
        None
    };
    let query = EventQuery {
        filter: EventFilter {
            kind: args.kind.kind(),
            ..args.conversation.filter()
        },
        id: None,
        since: args.since.map(|When(time)| time),
        until: args.until.map(|When(time)| time),
        first,
        last: None,
        order: SearchOrder::NewestFirst,
    };
    if args.json {
        print_lines(&inspector, query, args.limit.unwrap_or(u64::MAX))?;
    } else {
        print_tables(&inspector, query, args.limit.unwrap_or(TABLE_ROWS))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Every event up to here is confirmed, by this sink or by all configured ones.
fn confirmed(positions: &SinkPositions, wanted: Option<&str>) -> anyhow::Result<Seq> {
    if let Some(wanted) = wanted {
        return Ok(positions.named(wanted)?.confirmed);
    }
    let configured = positions.sinks.iter().filter(|sink| sink.is_configured);
    let lowest = configured.map(|sink| sink.confirmed).min();
    // Some sink is always configured.
    Ok(lowest.unwrap_or(positions.overview.last))
}

fn print_lines(inspector: &Inspector, query: EventQuery, limit: u64) -> anyhow::Result<()> {
    let mut out = BufWriter::with_capacity(64 << 10, output::json_stdout());
    let mut left = limit;
    search_all(inspector.search(query)?, |found, bar| {
        bar.clear();
        let (seq, stored) = (found.seq.0, found.stored.as_ref());
        let body = stored.and_then(|(_, event)| event_view::raw_body(event));
        let line = ListedEvent {
            seq,
            state: if body.is_some() { "kept" } else { "damaged" },
            stored_at: stored.map(|(time, _)| *time),
            event: body,
        };
        output::print_json(&mut out, &line)?;
        left -= 1;
        Ok(if left == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })?;
    Ok(out.flush()?)
}

fn print_tables(inspector: &Inspector, query: EventQuery, limit: u64) -> anyhow::Result<()> {
    let mut out = output::stdout();
    let (mut count, mut rows, mut has_more) = (0, Vec::new(), false);
    search_all(inspector.search(query)?, |found, bar| {
        if count == limit {
            has_more = true;
            return Ok(ControlFlow::Break(()));
        }
        count += 1;
        rows.push(found);
        if rows.len() == ROWS_PER_TABLE {
            bar.clear();
            print_table(&mut out, &rows)?;
            rows.clear();
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if !rows.is_empty() {
        print_table(&mut out, &rows)?;
    }
    out.flush()?;
    if has_more {
        telemetry::say(&format!(
            "only the newest {count} are listed; for more, use --limit, a filter, or --json"
        ));
    } else if count == 0 {
        telemetry::say("no event in the spool matches");
    }
    Ok(())
}

fn print_table(out: &mut impl Write, found: &[FoundEvent]) -> io::Result<()> {
    let mut table = Columns::new(&[
        "SEQ#",
        "STORED",
        "KIND",
        "CONVERSATION",
        "MESSAGES",
        "OPERATOR",
    ]);
    for event in found {
        table.row(cells(event));
    }
    table.print(out)
}

fn cells(found: &FoundEvent) -> [String; 6] {
    let seq = found.seq.to_string();
    let Some((stored_at, event)) = &found.stored else {
        let damaged = "damaged".to_owned();
        return [
            seq,
            damaged,
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        ];
    };
    let view = EventView::of(event);
    let Event {
        kind, conversation, ..
    } = event;
    // A rejected callback has no conversation but its application.
    let conversation = match view.conversation() {
        none if none.is_empty() => conversation.to_string(),
        conversation => conversation,
    };
    [
        seq,
        stored_at.to_string(),
        kind.name().to_owned(),
        fit(&conversation, CONVERSATION),
        fit(&view.messages(), MESSAGES),
        fit(view.operator(), OPERATOR),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::event::Kind;

    #[derive(Debug, clap::Parser)]
    struct List {
        #[command(flatten)]
        args: ListArgs,
    }

    fn parse(arguments: &[&str]) -> Option<ListArgs> {
        let arguments = ["list"].iter().chain(arguments);
        Some(List::try_parse_from(arguments).ok()?.args)
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        for right in [
            &[][..],
            &["--since", "2h", "--until", "2026-11-28T03:00:00Z"],
            &["--group", "g", "--topic", "t", "--limit", "1"],
            &["--waiting", "--sink", "kafka", "--json"],
            &["--kind", "official_account", "--app", "7"],
        ] {
            assert!(parse(right).is_some(), "{right:?}");
        }
        for wrong in [
            &["--limit", "0"][..],
            &["--sink", "kafka"],
            &["--since", "yesterday"],
            &["--topic", "t"],
            &["--group", "g", "--from", "a"],
            &["--kind", "official"],
        ] {
            assert!(parse(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn a_table_is_never_wider_than_120_columns() {
        let mut event = crate::event::tests::event(1, String::new());
        event.kind = Kind::OfficialAccount;
        let long = "消".repeat(100);
        event.body = format!(
            r#"{{"data":{{"conversation":{{"official_account":"{long}"}},"operator_id":"{long}",
                "messages":[{{"key":"{long}"}}]}}}}"#
        )
        .into();
        let found = FoundEvent {
            seq: Seq(9_999_999_999),
            stored: UnixMillis::new(1).map(|time| (time, event)),
        };
        let mut out = Vec::new();
        print_table(&mut out, &[found]).unwrap();
        let text = anstream::adapter::strip_str(str::from_utf8(&out).unwrap()).to_string();
        for line in text.lines() {
            let width = unicode_width::UnicodeWidthStr::width(line);
            assert!(width <= 120, "{width}: {line}");
        }
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
