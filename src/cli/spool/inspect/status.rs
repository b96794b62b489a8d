//! `recall-relay spool status`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Serialize;

use crate::cli::output::{self, ATTENTION, Columns, label, styled};
use crate::cli::sinks::{SinkPosition, SinkPositions};
use crate::config::Config;
use crate::event::UnixMillis;
use crate::spool::Inspector;
use crate::telemetry::escape;

/// Print what the spool holds, and how far each sink is
///
/// Reads the spool without changing it, beside a running relay or without one.
#[derive(Debug, clap::Args)]
pub(in crate::cli::spool) struct StatusArgs {
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// What the spool holds; documented in docs/reference/cli-json.md.
#[derive(Debug, Serialize)]
struct SpoolReport<'a> {
    path: &'a Path,
    relay_running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusing: Option<&'a str>,
    events: KeptEvents,
    used_bytes: u64,
    max_bytes: u64,
    lost: LostEvents,
    quarantined: &'a [PathBuf],
    sinks: Vec<SinkReport<'a>>,
}

#[derive(Debug, Serialize)]
struct KeptEvents {
    count: u64,
    /// The oldest; if there is none, the next one.
    first_seq: u64,
    /// The newest; if there is none, the number before.
    last_seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_stored_at: Option<UnixMillis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    newest_stored_at: Option<UnixMillis>,
}

#[derive(Debug, Serialize)]
struct LostEvents {
    count: u64,
    ranges: Vec<[u64; 2]>,
}

#[derive(Debug, Serialize)]
struct SinkReport<'a> {
    sink: &'a str,
    configured: bool,
    state: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<&'a str>,
    confirmed_seq: u64,
    cursor_damaged: bool,
    waiting: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_waiting_stored_at: Option<UnixMillis>,
    pins: bool,
    dead_letters: u64,
}

pub(in crate::cli::spool) fn status(
    args: &StatusArgs,
    config: &Config,
) -> anyhow::Result<ExitCode> {
    let inspector = Inspector::open(&config.spool)?;
    let positions = SinkPositions::read(&inspector, config)?;
    let report = SpoolReport::new(&inspector, &positions, config)?;
    let mut out = output::stdout();
    if args.json {
        output::print_json(&mut out, &report)?;
    } else {
        report.print(&mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl<'a> SpoolReport<'a> {
    fn new(
        inspector: &'a Inspector,
        positions: &'a SinkPositions,
        config: &Config,
    ) -> anyhow::Result<Self> {
        let SinkPositions {
            overview, relay, ..
        } = positions;
        let lost: Vec<_> = overview.lost().collect();
        let sinks = positions.sinks.iter();
        let sinks = sinks.map(|sink| SinkReport::new(inspector, positions, sink));
        let known = &overview.dead_letters;
        // Dead letters of a sink whose cursor was deleted.
        let forgotten = known.iter().filter(|(name, _)| {
            let mut sinks = positions.sinks.iter();
            sinks.all(|sink| sink.name != **name)
        });
        let forgotten = forgotten.map(|(name, count)| {
            Ok(SinkReport {
                sink: name,
                configured: false,
                state: "not_configured",
                reason: None,
                since: None,
                confirmed_seq: overview.last.0,
                cursor_damaged: false,
                waiting: 0,
                oldest_waiting_stored_at: None,
                pins: false,
                dead_letters: *count,
            })
        });
        Ok(Self {
            path: inspector.path(),
            relay_running: relay.is_some(),
            refusing: relay.as_ref().and_then(|relay| relay.refusing.as_deref()),
            events: KeptEvents {
                count: overview.kept(),
                first_seq: overview.first.0,
                last_seq: overview.last.0,
                oldest_stored_at: overview.oldest_appended_at,
                newest_stored_at: overview.newest_appended_at,
            },
            used_bytes: overview.used_bytes,
            max_bytes: config.spool.max_bytes.0,
            lost: LostEvents {
                count: overview.lost_events(),
                ranges: lost.iter().map(|(first, last)| [first.0, last.0]).collect(),
            },
            quarantined: &overview.quarantined,
            sinks: sinks.chain(forgotten).collect::<anyhow::Result<_>>()?,
        })
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        label(out, "spool", &self.path.display().to_string())?;
        let relay = if self.relay_running {
            "running"
        } else {
            "no relay answers on this spool"
        };
        label(out, "relay", relay)?;
        if let Some(reason) = self.refusing {
            label(out, "refusing", reason)?;
        }
        label(out, "events", &self.events.words())?;
        let used = ByteSize(self.used_bytes).display().iec();
        let max = ByteSize(self.max_bytes).display().iec();
        label(out, "size", &format!("{used} of {max} (spool.max_bytes)"))?;
        if self.lost.count > 0 {
            let ranges: Vec<_> = self.lost.ranges.iter().map(range).collect();
            let (count, ranges) = (self.lost.count, ranges.join(", "));
            label(out, "lost", &format!("{count} events, by damage: {ranges}"))?;
        }
        for file in self.quarantined {
            let file = file.display();
            label(
                out,
                "quarantined",
                &format!("{file}; delete it if nobody needs it any more"),
            )?;
        }
        writeln!(out)?;
        self.print_sinks(out)
    }

    fn print_sinks(&self, out: &mut impl Write) -> io::Result<()> {
        let headings = [
            "SINK",
            "STATE",
            "CONFIRMED#",
            "WAITING#",
            "OLDEST WAITING",
            "DEAD LETTERS#",
        ];
        let mut table = Columns::new(&headings);
        for sink in &self.sinks {
            let oldest = sink.oldest_waiting_stored_at.map(with_age);
            table.row([
                sink.sink,
                &sink.state.replace('_', " "),
                &sink.confirmed_seq.to_string(),
                &sink.waiting.to_string(),
                &oldest.unwrap_or_default(),
                &sink.dead_letters.to_string(),
            ]);
        }
        table.print(out)?;
        let advice: Vec<_> = self.sinks.iter().flat_map(SinkReport::advice).collect();
        if !advice.is_empty() {
            writeln!(out)?;
        }
        let mut advice = advice.iter().map(|advice| escape(advice));
        advice.try_for_each(|advice| writeln!(out, "{}", styled(ATTENTION, &advice)))
    }
}

impl KeptEvents {
    fn words(&self) -> String {
        let (Some(oldest), Some(newest)) = (self.oldest_stored_at, self.newest_stored_at) else {
            return format!("{} kept", self.count);
        };
        format!(
            "{} kept, {}, stored from {oldest} to {newest}",
            self.count,
            range(&[self.first_seq, self.last_seq])
        )
    }
}

impl<'a> SinkReport<'a> {
    fn new(
        inspector: &Inspector,
        positions: &'a SinkPositions,
        sink: &'a SinkPosition,
    ) -> anyhow::Result<Self> {
        let overview = &positions.overview;
        let waiting = overview.kept_within(sink.confirmed, overview.last);
        let dead_letters = overview.dead_letters.get(&sink.name);
        Ok(Self {
            sink: &sink.name,
            configured: sink.is_configured,
            state: sink.state(),
            reason: sink.reason(),
            since: sink.since(),
            confirmed_seq: sink.confirmed.0,
            cursor_damaged: sink.is_damaged,
            waiting,
            oldest_waiting_stored_at: if waiting > 0 {
                inspector.appended_after(sink.confirmed)?
            } else {
                None
            },
            pins: sink.pins,
            dead_letters: dead_letters.copied().unwrap_or_default(),
        })
    }

    /// What needs attention, and what to do.
    fn advice(&self) -> Vec<String> {
        let sink = self.sink;
        let mut advice = Vec::new();
        if let Some(reason) = self.reason {
            let since = self.since.map(|since| format!(" since {since}"));
            let since = since.unwrap_or_default();
            advice.push(format!("{sink} is {}{since}: {reason}", self.state));
        }
        if self.cursor_damaged {
            advice.push(format!(
                "the cursor of {sink} is damaged; the next start publishes every kept event again"
            ));
        }
        if !self.configured && self.pins {
            advice.push(format!(
                "{sink} is not configured, and its cursor pins {} events; configure it again, or run \
                 `recall-relay spool forget {sink}`",
                self.waiting
            ));
        }
        if self.dead_letters > 0 {
            advice.push(format!(
                "{sink} could not publish {} events, not even as dead letters; to list them, run \
                 `recall-relay spool dead-letters list`",
                self.dead_letters
            ));
        }
        advice
    }
}

fn range([first, last]: &[u64; 2]) -> String {
    if first == last {
        format!("number {first}")
    } else {
        format!("numbers {first} to {last}")
    }
}

fn with_age(time: UnixMillis) -> String {
    let age = UnixMillis::now().as_millis() - time.as_millis();
    let seconds = u64::try_from(age / 1000).unwrap_or_default();
    let age = humantime::format_duration(Duration::from_secs(seconds));
    format!("{time} ({age})")
}
