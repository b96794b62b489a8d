//! The answer while the broker is away: the vendor must not notice.

use super::super::bench::{Bench, Sink};
use super::super::columns::{OF_A_ROUND, cells};
use super::super::load::Load;
use super::super::round::{Forwarding, measure, medians, ratio};
use super::super::table::{Cell, Report, Table, Target};
use super::{LONGER, MEMORY_MIB, warm_up};

pub const NAME: &str = "broker_down";

pub fn play(bench: &mut Bench) -> Report {
    let columns = [
        ("sink", "sink"),
        ("connections", "connections"),
        ("broker", "broker"),
        ("p99 of up", "p99_of_up"),
    ];
    let columns: Vec<_> = columns.into_iter().chain(OF_A_ROUND).collect();
    let title = "The broker is up; nobody listens where it should be.";
    let (mut report, mut table) = (Report::new(NAME), Table::new(title, &columns));
    let mut memory: f64 = 0.0;
    for sink in Sink::BROKERS {
        let (up, to) = bench.relay(sink);
        let down = bench.relay_without_broker(sink);
        warm_up(&up, &bench.cores, Forwarding::UntilDrained(sink.name()));
        warm_up(&down, &bench.cores, Forwarding::Ignored);
        for connections in bench.options.beside() {
            let load = Load::new(*connections, bench.options.round);
            let (mut with, mut without) = (Vec::new(), Vec::new());
            for _ in 0..bench.options.rounds {
                let forwarding = Forwarding::UntilDrained(sink.name());
                with.push(measure(&up, &load, &bench.cores, forwarding));
                to.clear();
                without.push(measure(&down, &load, &bench.cores, Forwarding::Ignored));
            }
            for (broker, rounds) in [("up", &with), ("down", &without)] {
                let mut row: Vec<Cell> =
                    vec![sink.name().into(), (*connections).into(), broker.into()];
                row.push(Cell::Number(ratio(rounds, &with, |it| it.p99), 2));
                row.extend(cells(&medians(rounds)));
                table.push(row);
                memory = memory.max(medians(rounds).memory);
            }
            let what = format!("p99 of up: {}, {connections} connections", sink.name());
            let figure = ratio(&without, &with, |it| it.p99);
            report.targets.push(Target::at_most(what, LONGER, figure));
        }
    }
    report.tables.push(table);
    report
        .targets
        .push(Target::at_most("peak memory, MiB", MEMORY_MIB, memory));
    report
}
