//! `recall-relay spool dead-letters list` and `show`.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::selection::not_kept;
use super::{ListArgs, ShowArgs};
use crate::cli::event_view::{self, EventView};
use crate::cli::id_or_seq::IdOrSeq;
use crate::cli::output::{self, Columns, fit, label};
use crate::config::Config;
use crate::event::UnixMillis;
use crate::spool::{DeadLetterQuery, Inspector, KeptDeadLetter};
use crate::telemetry::{self, escape};

/// The columns that a conversation may take: with it, a line has 120 at most.
const CONVERSATION: usize = 15;

/// A line of JSON; documented in docs/reference/cli-json.md.
#[derive(Debug, Serialize)]
struct DeadLetterLine<'a> {
    sink: &'a str,
    seq: u64,
    at: UnixMillis,
    reason: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a RawValue>,
}

impl<'a> DeadLetterLine<'a> {
    fn new(dead_letter: &'a KeptDeadLetter) -> Self {
        Self {
            sink: &dead_letter.sink,
            seq: dead_letter.seq.0,
            at: dead_letter.at,
            reason: &dead_letter.reason,
            detail: &dead_letter.detail,
            event: event_view::raw_body(&dead_letter.event),
        }
    }
}

pub(super) fn list(args: ListArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let inspector = Inspector::open(&config.spool)?;
    let query = DeadLetterQuery {
        sink: args.sink.sink,
        ..DeadLetterQuery::default()
    };
    let mut out = output::stdout();
    let mut count = 0;
    for page in inspector.dead_letters(query) {
        let page = page?;
        count += page.len();
        if args.json {
            let mut lines = page.iter().map(DeadLetterLine::new);
            lines.try_for_each(|line| output::print_json(&mut out, &line))?;
        } else {
            print_table(&mut out, &page)?;
        }
    }
    if count == 0 {
        telemetry::say("the spool keeps no such dead letter");
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints dead letters as a table.
pub(super) fn print_table(out: &mut impl Write, page: &[KeptDeadLetter]) -> io::Result<()> {
    let headings = ["SINK", "SEQ#", "STORED", "REASON", "ID", "CONVERSATION"];
    let mut table = Columns::new(&headings);
    for dead_letter in page {
        let conversation = EventView::of(&dead_letter.event).conversation();
        table.row([
            &dead_letter.sink,
            &dead_letter.seq.to_string(),
            &dead_letter.at.to_string(),
            &dead_letter.reason,
            &dead_letter.event.id.to_string(),
            &fit(&conversation, CONVERSATION),
        ]);
    }
    table.print(out)
}

pub(super) fn show(args: &ShowArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let inspector = Inspector::open(&config.spool)?;
    let mut query = DeadLetterQuery::default();
    match args.event {
        IdOrSeq::Id(id) => query.id = Some(id),
        IdOrSeq::Seq(seq) => query.seq = Some(seq),
    }
    let mut out = output::stdout();
    let mut count = 0;
    for page in inspector.dead_letters(query) {
        for dead_letter in &page? {
            if args.json {
                output::print_json(&mut out, &DeadLetterLine::new(dead_letter))?;
            } else {
                print_dead_letter(&mut out, dead_letter, count > 0)?;
            }
            count += 1;
        }
    }
    if count == 0 {
        bail!("{}", not_kept(&args.event.to_string(), None));
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints everything about a dead letter, after an empty line if it is not the first one.
fn print_dead_letter(
    out: &mut impl Write,
    dead_letter: &KeptDeadLetter,
    has_previous: bool,
) -> io::Result<()> {
    if has_previous {
        writeln!(out)?;
    }
    let event = &dead_letter.event;
    label(out, "sink", &dead_letter.sink)?;
    label(out, "number", &dead_letter.seq.to_string())?;
    label(out, "id", &event.id.to_string())?;
    label(out, "kind", event.kind.name())?;
    label(out, "key", &event.conversation)?;
    label(out, "stored", &dead_letter.at.to_string())?;
    label(out, "reason", &dead_letter.reason)?;
    label(out, "detail", &dead_letter.detail)?;
    writeln!(out)?;
    let body: Value = serde_json::from_slice(&event.body).unwrap_or_default();
    let body = serde_json::to_string_pretty(&body).map_err(io::Error::from)?;
    // A line feed within a text is escaped in JSON.
    body.lines()
        .try_for_each(|line| writeln!(out, "{}", escape(line)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Kind, Seq};

    /// A dead letter whose texts are long and try to control the terminal.
    fn dead_letter() -> KeptDeadLetter {
        let mut event = crate::event::tests::event(1, String::new());
        event.kind = Kind::Group;
        let long = "消".repeat(100);
        event.body =
            format!(r#"{{"data":{{"conversation":{{"group_id":"\u001b[2J{long}"}}}}}}"#).into();
        KeptDeadLetter {
            sink: "rabbitmq".to_owned(),
            seq: Seq(9_999_999_999),
            at: UnixMillis::new(1_670_574_414_123).unwrap(),
            reason: "dead_letter_queue".to_owned(),
            detail: "a\u{1b}[2J\nforged".to_owned(),
            event,
        }
    }

    #[test]
    fn a_table_is_never_wider_than_120_columns() {
        let mut out = Vec::new();
        print_table(&mut out, &[dead_letter()]).unwrap();
        let text = anstream::adapter::strip_str(str::from_utf8(&out).unwrap()).to_string();
        for line in text.lines() {
            let width = unicode_width::UnicodeWidthStr::width(line);
            assert!(width <= 120, "{width}: {line}");
        }
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("2022-12-09T08:26:54.123Z"), "{text}");
    }

    #[test]
    fn a_dead_letter_cannot_control_the_terminal() {
        let (mut text, mut json) = (Vec::new(), Vec::new());
        print_dead_letter(&mut text, &dead_letter(), false).unwrap();
        output::print_json(&mut json, &DeadLetterLine::new(&dead_letter())).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert!(
            text.contains("detail        a\\u001b[2J\\u000aforged\n"),
            "{text}"
        );
        let json: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["detail"], "a\u{1b}[2J\nforged");
        assert_eq!(json["at"], "2022-12-09T08:26:54.123Z");
        assert!(json["event"]["data"].is_object(), "{json}");
    }
}
