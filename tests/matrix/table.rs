//! The table of results, which is printed and written as Markdown and JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::ledger::Ledger;
use super::lost_machines::Losses;
use super::options::Options;
use super::verdict::Verdict;

/// The maximum number of events that a problem lists, and of problems that a row lists.
const MAX_LISTED: usize = 8;

/// The results of a scenario on one sink.
#[derive(Debug, Default)]
pub struct Row {
    pub scenario: String,
    pub sink: String,
    pub sent: u64,
    pub ok: u64,
    pub missing: u64,
    pub duplicates: u64,
    pub out_of_order: u64,
    pub not_ok: u64,
    pub unanswered: u64,
    pub slowest: Duration,
    pub faults: usize,
    /// The longest time from the end of a fault to the next OK.
    pub answers_again: Option<Duration>,
    /// The longest time from the end of a fault until the sink has caught up.
    pub caught_up: Option<Duration>,
    pub peak_memory: u64,
    /// If machines were lost. What was lost as it may be does not count as missing.
    pub losses: Option<Losses>,
    /// Violations of a promise or a bound; empty if the scenario passed.
    pub problems: Vec<String>,
}

const HEAD: [&str; 14] = [
    "scenario",
    "sink",
    "faults",
    "sent",
    "answered OK",
    "missing",
    "out of order",
    "duplicates",
    "not OK",
    "unanswered",
    "longest OK, ms",
    "OK again, s",
    "caught up, s",
    "peak memory, MiB",
];

const LOSSES_HEAD: [&str; 9] = [
    "scenario",
    "sink",
    "machines",
    "answered after the broker",
    "missing",
    "other answers OK",
    "lost",
    "at risk",
    "late",
];

impl Row {
    pub fn new(scenario: &str, sink: &str, ledger: &Ledger, verdict: &Verdict) -> Self {
        let mut row = Self {
            scenario: scenario.to_owned(),
            sink: sink.to_owned(),
            sent: ledger.sent,
            ok: ledger.ok,
            missing: verdict.missing.len() as u64,
            duplicates: verdict.duplicates,
            out_of_order: verdict.out_of_order.len() as u64,
            not_ok: ledger.not_ok,
            unanswered: ledger.unanswered,
            slowest: ledger.slowest,
            ..Self::default()
        };
        let missing = verdict.missing.iter();
        let missing = missing.map(|(conversation, number)| format!("{conversation}/{number}"));
        row.list_problem("missing", &missing.collect::<Vec<_>>());
        let late = verdict.out_of_order.iter();
        let late = late.map(|(conversation, number, newest)| {
            format!("{conversation}/{number} after {newest}")
        });
        row.list_problem("out of order", &late.collect::<Vec<_>>());
        row.list_problem("unexpected", &verdict.unexpected);
        row
    }

    fn list_problem(&mut self, what: &str, which: &[String]) {
        if !which.is_empty() {
            let first = &which[..which.len().min(MAX_LISTED)];
            let problem = format!("{} {what}: {} ...", which.len(), first.join(", "));
            self.problems.push(problem);
        }
    }

    /// Adds the results of another round of the same scenario.
    pub fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.ok += other.ok;
        self.missing += other.missing;
        self.duplicates += other.duplicates;
        self.out_of_order += other.out_of_order;
        self.not_ok += other.not_ok;
        self.unanswered += other.unanswered;
        self.slowest = self.slowest.max(other.slowest);
        self.faults += other.faults;
        self.answers_again = self.answers_again.max(other.answers_again);
        self.caught_up = self.caught_up.max(other.caught_up);
        self.peak_memory = self.peak_memory.max(other.peak_memory);
        // Keep the problems of the first rounds: later ones may be consequences.
        let rest = MAX_LISTED.saturating_sub(self.problems.len());
        self.problems.extend(other.problems.into_iter().take(rest));
    }

    fn cells(&self) -> [String; 14] {
        let seconds = |time: Option<Duration>| {
            time.map_or_else(
                || "-".to_owned(),
                |time| format!("{:.2}", time.as_secs_f64()),
            )
        };
        [
            self.scenario.clone(),
            self.sink.clone(),
            self.faults.to_string(),
            self.sent.to_string(),
            self.ok.to_string(),
            self.missing.to_string(),
            self.out_of_order.to_string(),
            self.duplicates.to_string(),
            self.not_ok.to_string(),
            self.unanswered.to_string(),
            format!("{:.1}", self.slowest.as_secs_f64() * 1000.0),
            seconds(self.answers_again),
            seconds(self.caught_up),
            (self.peak_memory >> 20).to_string(),
        ]
    }

    fn loss_cells(&self) -> Option<[String; 9]> {
        let losses = self.losses?;
        Some([
            self.scenario.clone(),
            self.sink.clone(),
            losses.machines.to_string(),
            losses.after_broker.to_string(),
            self.missing.to_string(),
            losses.others.to_string(),
            losses.lost.to_string(),
            losses.at_most.to_string(),
            losses.late.to_string(),
        ])
    }

    fn json(&self) -> Value {
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        json!({
            "scenario": self.scenario, "sink": self.sink, "faults": self.faults,
            "sent": self.sent, "ok": self.ok, "missing": self.missing,
            "out_of_order": self.out_of_order, "duplicates": self.duplicates,
            "not_ok": self.not_ok, "unanswered": self.unanswered,
            "longest_ok_seconds": self.slowest.as_secs_f64(),
            "ok_again_seconds": seconds(self.answers_again),
            "caught_up_seconds": seconds(self.caught_up),
            "peak_memory_bytes": self.peak_memory, "complaints": self.problems,
            "lost_machines": self.losses.map(|losses| json!({
                "machines": losses.machines, "after_broker": losses.after_broker,
                "others": losses.others, "lost": losses.lost, "at_most": losses.at_most,
                "late": losses.late,
            })),
        })
    }
}

/// The tables of all rows, and of those in which machines were lost.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = aligned(HEAD, rows.iter().map(Row::cells));
    let losses: Vec<_> = rows.iter().filter_map(Row::loss_cells).collect();
    if !losses.is_empty() {
        text.push('\n');
        text += &aligned(LOSSES_HEAD, losses);
    }
    text
}

/// A Markdown table with aligned columns.
fn aligned<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut lines: Vec<[String; N]> = vec![head.map(str::to_owned)];
    lines.extend(rows);
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].len())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            let _ = if column < 2 {
                write!(text, "| {cell:width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text.push_str("|\n");
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let _ = match column {
                    0 | 1 => write!(text, "|{:-<1$}", "", width + 2),
                    _ => write!(text, "|{:->1$}:", "", width + 1),
                };
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Writes `NAME.md` and `NAME.json`.
pub fn write(folder: &Path, name: &str, rows: &[Row], options: &Options) {
    fs::create_dir_all(folder).expect("cannot create the output folder");
    fs::write(folder.join(format!("{name}.md")), markdown(rows)).expect("cannot write the table");
    let rows: Vec<Value> = rows.iter().map(Row::json).collect();
    let all = json!({
        "form": format!("{:?}", options.form).to_lowercase(), "seed": options.seed,
        "conversations": options.conversations, "rate": options.rate, "rows": rows,
    });
    fs::write(folder.join(format!("{name}.json")), format!("{all:#}\n"))
        .expect("cannot write the table");
}
