//! The answer while a backlog goes out.

use std::time::Duration;

use super::super::bench::{Bench, Sink};
use super::super::columns::{OF_A_ROUND, cells};
use super::super::cores::Place;
use super::super::load::Load;
use super::super::round::{Forwarding, Round, measure, medians, ratio};
use super::super::server::Server;
use super::super::table::{Cell, Report, Table, Target};
use super::{LONGER, MEMORY_MIB, warm_up};

pub const NAME: &str = "catching_up";

/// How long a relay may take to find its broker.
const CONNECTS: Duration = Duration::from_secs(60);

pub fn play(bench: &mut Bench) -> Report {
    let columns = [
        ("sink", "sink"),
        ("connections", "connections"),
        ("sink is", "sink_is"),
        ("p99 of even", "p99_of_even"),
    ];
    let columns: Vec<_> = columns.into_iter().chain(OF_A_ROUND).collect();
    let title = "The sink is even with the callbacks; it is behind by a backlog and catches up meanwhile \
                 (all the while, where it is still behind at the end).";
    let (mut report, mut table) = (Report::new(NAME), Table::new(title, &columns));
    let mut memory: f64 = 0.0;
    for sink in Sink::BROKERS {
        let (even, to) = bench.relay(sink);
        warm_up(&even, &bench.cores, Forwarding::UntilDrained(sink.name()));
        for connections in bench.options.beside() {
            let load = Load::new(*connections, bench.options.round);
            let (mut with, mut without) = (Vec::new(), Vec::new());
            for _ in 0..bench.options.rounds {
                let forwarding = Forwarding::UntilDrained(sink.name());
                without.push(measure(&even, &load, &bench.cores, forwarding));
                to.clear();
                with.push(behind(bench, sink, &load));
            }
            for (state, rounds) in [("even", &without), ("behind", &with)] {
                let mut row: Vec<Cell> =
                    vec![sink.name().into(), (*connections).into(), state.into()];
                row.push(Cell::Number(ratio(rounds, &without, |it| it.p99), 2));
                row.extend(cells(&medians(rounds)));
                table.push(row);
                memory = memory.max(medians(rounds).memory);
            }
            let what = format!("p99 of even: {}, {connections} connections", sink.name());
            let figure = ratio(&with, &without, |it| it.p99);
            report.targets.push(Target::at_most(what, LONGER, figure));
        }
    }
    report.tables.push(table);
    report
        .targets
        .push(Target::at_most("peak memory, MiB", MEMORY_MIB, memory));
    report
}

/// A round on a relay that has just begun to send a backlog, which ends with the round.
fn behind(bench: &mut Bench, sink: Sink, load: &Load) -> Round {
    let to = bench.destination(sink, Place::Generator);
    let setup = to.settings(bench.setup());
    bench.backlogs.copy(bench.options.backlog, &setup);
    let relay = Server::relay(setup, &bench.cores, Place::Server);
    relay.until_sink(sink.name(), CONNECTS, |it| it.cursor > 0);
    let forwarding = Forwarding::For(sink.name(), Duration::ZERO);
    let round = measure(&relay, load, &bench.cores, forwarding);
    drop(relay);
    to.clear();
    round
}
