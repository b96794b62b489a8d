//! The answer of the same relay in two situations, side by side.

use super::super::bench::Sink;
use super::super::columns::{OF_A_ROUND, cells};
use super::super::round::{Round, medians, ratio};
use super::super::table::{Cell, Report, Table, Target};
use super::{LONGER, MEMORY_MIB};

pub struct Comparison {
    report: Report,
    table: Table,
    /// The usual situation, and the other one.
    situations: [&'static str; 2],
    memory: f64,
}

impl Comparison {
    /// The two columns tell the situation, and its p99 of that in the usual one.
    pub fn new(
        name: &'static str,
        title: &str,
        columns: [(&'static str, &'static str); 2],
        situations: [&'static str; 2],
    ) -> Self {
        let all = [("sink", "sink"), ("connections", "connections")];
        let all: Vec<_> = all.into_iter().chain(columns).chain(OF_A_ROUND).collect();
        Self {
            report: Report::new(name),
            table: Table::new(title, &all),
            situations,
            memory: 0.0,
        }
    }

    pub fn add(&mut self, sink: Sink, connections: u32, usual: &[Round], other: &[Round]) {
        for (situation, rounds) in self.situations.into_iter().zip([usual, other]) {
            let mut row: Vec<Cell> = vec![sink.name().into(), connections.into(), situation.into()];
            row.push(Cell::Number(ratio(rounds, usual, |it| it.p99), 2));
            row.extend(cells(&medians(rounds)));
            self.table.push(row);
            self.memory = self.memory.max(medians(rounds).memory);
        }
        let (usually, sink) = (self.situations[0], sink.name());
        let what = format!("p99 of {usually}: {sink}, {connections} connections");
        let figure = ratio(other, usual, |it| it.p99);
        let target = Target::at_most(what, LONGER, figure);
        self.report.targets.push(target);
    }

    pub fn report(mut self) -> Report {
        self.report.tables.push(self.table);
        let target = Target::at_most("peak memory, MiB", MEMORY_MIB, self.memory);
        self.report.targets.push(target);
        self.report
    }
}
