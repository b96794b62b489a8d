//! The tables of results: printed, and written as Markdown, JSON and plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::plot;

/// The results of a scenario.
#[derive(Debug, Default)]
pub struct Report {
    pub name: &'static str,
    pub tables: Vec<Table>,
    pub targets: Vec<Target>,
}

#[derive(Debug)]
pub struct Table {
    pub title: String,
    /// The headings for people and the keys for programs.
    columns: Vec<(&'static str, &'static str)>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Debug, Clone)]
pub enum Cell {
    Text(String),
    Count(u64),
    /// A number and its decimals.
    Number(f64, usize),
    Nothing,
}

/// A result and its bound.
#[derive(Debug)]
pub struct Target {
    pub what: String,
    pub value: f64,
    pub bound: Bound,
}

#[derive(Debug, Clone, Copy)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    pub fn at_most(what: impl Into<String>, bound: f64, value: f64) -> Self {
        let bound = Bound::AtMost(bound);
        Self {
            what: what.into(),
            value,
            bound,
        }
    }

    pub fn at_least(what: impl Into<String>, bound: f64, value: f64) -> Self {
        let bound = Bound::AtLeast(bound);
        Self {
            what: what.into(),
            value,
            bound,
        }
    }

    pub fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtMost(bound) => self.value <= bound,
            Bound::AtLeast(bound) => self.value >= bound,
        }
    }

    fn verdict(&self) -> &'static str {
        if self.is_met() { "met" } else { "missed" }
    }

    fn json(&self) -> Value {
        let (kind, bound) = match self.bound {
            Bound::AtMost(bound) => ("at_most", bound),
            Bound::AtLeast(bound) => ("at_least", bound),
        };
        json!({"what": self.what, "figure": self.value, kind: bound, "holds": self.is_met()})
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u32> for Cell {
    fn from(number: u32) -> Self {
        Self::Count(number.into())
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Count(number)
    }
}

impl Cell {
    pub fn of(number: Option<f64>, decimals: usize) -> Self {
        number.map_or(Self::Nothing, |number| Self::Number(number, decimals))
    }

    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(count) => count.to_string(),
            Self::Number(number, decimals) => format!("{number:.decimals$}"),
            Self::Nothing => "-".to_owned(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Count(count) => json!(count),
            Self::Number(number, _) => json!(number),
            Self::Nothing => Value::Null,
        }
    }
}

impl Table {
    pub fn new(title: impl Into<String>, columns: &[(&'static str, &'static str)]) -> Self {
        Self {
            title: title.into(),
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    pub fn push(&mut self, row: Vec<Cell>) {
        assert_eq!(
            row.len(),
            self.columns.len(),
            "a row must have one cell for each column"
        );
        self.rows.push(row);
    }

    fn markdown(&self) -> String {
        let header = self
            .columns
            .iter()
            .map(|(heading, _)| (*heading).to_owned());
        let mut lines: Vec<Vec<String>> = vec![header.collect()];
        lines.extend(
            self.rows
                .iter()
                .map(|row| row.iter().map(Cell::text).collect()),
        );
        let is_text: Vec<bool> = (0..self.columns.len())
            .map(|column| {
                self.rows
                    .iter()
                    .any(|row| matches!(row[column], Cell::Text(_)))
            })
            .collect();
        grid(&lines, &is_text)
    }

    fn json(&self) -> Value {
        let row = |row: &Vec<Cell>| -> Map<String, Value> {
            let names = self.columns.iter().map(|(_, name)| (*name).to_owned());
            names.zip(row.iter().map(Cell::json)).collect()
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        json!({"title": self.title, "rows": rows})
    }
}

impl Report {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("## {}\n", self.name);
        for table in &self.tables {
            let _ = write!(text, "\n{}\n\n{}", table.title, table.markdown());
        }
        text
    }

    fn json(&self) -> Value {
        let tables: Vec<_> = self.tables.iter().map(Table::json).collect();
        let targets: Vec<_> = self.targets.iter().map(Target::json).collect();
        json!({"scenario": self.name, "tables": tables, "targets": targets})
    }
}

/// A table of all targets of all scenarios.
pub fn targets(reports: &[Report]) -> String {
    let mut lines = vec![
        ["scenario", "target", "result", "bound", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    for report in reports {
        lines.extend(report.targets.iter().map(|target| {
            let bound = match target.bound {
                Bound::AtMost(bound) => format!("at most {bound}"),
                Bound::AtLeast(bound) => format!("at least {bound}"),
            };
            let value = format!("{:.2}", target.value);
            let verdict = target.verdict().to_owned();
            vec![
                report.name.to_owned(),
                target.what.clone(),
                value,
                bound,
                verdict,
            ]
        }));
    }
    format!(
        "## targets\n\n{}",
        grid(&lines, &[true, true, false, true, true])
    )
}

/// Writes `performance.md`, `performance.json` and the plots.
pub fn write(folder: &Path, run: &Value, about: &str, reports: &[Report]) {
    fs::create_dir_all(folder).expect("cannot create the output folder");
    let mut text = format!("{about}\n\n{}", targets(reports));
    for report in reports {
        let _ = write!(text, "\n{}", report.markdown());
    }
    fs::write(folder.join("performance.md"), text).expect("cannot write the tables");
    let scenarios: Vec<_> = reports.iter().map(Report::json).collect();
    let all = json!({"run": run, "scenarios": scenarios});
    fs::write(folder.join("performance.json"), format!("{all:#}\n"))
        .expect("cannot write the tables");
    draw(folder, &all);
}

/// Writes the plots of a report.
pub fn draw(folder: &Path, report: &Value) {
    for (file, svg) in plot::draw(report) {
        fs::write(folder.join(file), svg).expect("cannot write a plot");
    }
}

/// A Markdown table with aligned columns; the first line is the header.
fn grid(lines: &[Vec<String>], is_text: &[bool]) -> String {
    let width = |column: usize| {
        let lengths = lines.iter().map(|line| line[column].chars().count());
        lengths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..is_text.len()).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for ((cell, width), is_text) in line.iter().zip(&widths).zip(is_text) {
            let _ = if *is_text {
                write!(text, "| {cell:width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text.push_str("|\n");
        if number == 0 {
            for (width, is_text) in widths.iter().zip(is_text) {
                let _ = if *is_text {
                    write!(text, "|{:-<1$}", "", width + 2)
                } else {
                    write!(text, "|{:->1$}:", "", width + 1)
                };
            }
            text.push_str("|\n");
        }
    }
    text
}
