//! A comparison of the same relay's answers in two situations.

use super::super::bench::Sink;
use super::super::columns::{ROUND_COLUMNS, cells};
use super::super::round::{Round, medians, ratio};
use super::super::table::{Cell, Report, Table, Target};
use super::{MAX_MEMORY_MIB, MAX_P99_RATIO};

pub struct Comparison {
    report: Report,
    table: Table,
    /// The baseline, and the situation compared with it.
    situations: [&'static str; 2],
    memory: f64,
}

impl Comparison {
    /// The two columns are the situation, and the ratio of its p99 to that of the baseline.
    pub fn new(
        name: &'static str,
        title: &str,
        columns: [(&'static str, &'static str); 2],
        situations: [&'static str; 2],
    ) -> Self {
        let all = [("sink", "sink"), ("connections", "connections")];
        let all: Vec<_> = all
            .into_iter()
            .chain(columns)
            .chain(ROUND_COLUMNS)
            .collect();
        Self {
            report: Report::new(name),
            table: Table::new(title, &all),
            situations,
            memory: 0.0,
        }
    }

    pub fn add(&mut self, sink: Sink, connections: u32, baseline: &[Round], other: &[Round]) {
        for (situation, rounds) in self.situations.into_iter().zip([baseline, other]) {
            let mut row: Vec<Cell> = vec![sink.name().into(), connections.into(), situation.into()];
            row.push(Cell::Number(ratio(rounds, baseline, |it| it.p99), 2));
            row.extend(cells(&medians(rounds)));
            self.table.push(row);
            self.memory = self.memory.max(medians(rounds).memory);
        }
        let (baseline_name, sink) = (self.situations[0], sink.name());
        let what = format!("p99 of {baseline_name}: {sink}, {connections} connections");
        let figure = ratio(other, baseline, |it| it.p99);
        let target = Target::at_most(what, MAX_P99_RATIO, figure);
        self.report.targets.push(target);
    }

    pub fn report(mut self) -> Report {
        self.report.tables.push(self.table);
        let target = Target::at_most("peak memory, MiB", MAX_MEMORY_MIB, self.memory);
        self.report.targets.push(target);
        self.report
    }
}
