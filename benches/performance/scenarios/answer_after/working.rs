//! The cost while the broker works.

use super::super::super::bench::{Bench, Sink};
use super::super::super::cores::CoreSet;
use super::super::super::load::Load;
use super::super::super::round::{median, medians};
use super::super::super::table::{Cell, Report, Table, Target};
use super::super::{MAX_MEMORY_MIB, warm_up};
use super::{Relay, columns};

pub const NAME: &str = "answer_after";

const CONNECTIONS: [u32; 4] = [1, 8, 64, 256];

/// The minimum share of answers that were given after the broker's confirm. The others had missed the deadline.
const MIN_CONFIRMED_SHARE: f64 = 0.999;

pub fn run(bench: &mut Bench) -> Report {
    let mut report = Report::new(NAME);
    let mut memory: f64 = 0.0;
    let first = [("sink", "sink"), ("connections", "connections")];
    let columns: Vec<_> = first.into_iter().chain(columns()).collect();
    let title = "The broker works. \"After the broker\" is the share of answers that were given after its confirm.";
    let mut table = Table::new(title, &columns);
    for sink in Sink::BROKERS {
        // The second relay that waits for the disk shows how much two equal relays differ.
        let mut relays = ["disk", "disk again", "broker"].map(|name| {
            let destination = bench.destination(sink, CoreSet::Generator);
            let setup = destination.settings(bench.setup());
            let relay = Relay::start(name, sink, setup, &bench.cores);
            warm_up(&relay.server, &bench.cores, relay.sink_wait());
            (relay, destination)
        });
        for connections in CONNECTIONS {
            let load = Load::new(connections, bench.options.round);
            for (relay, _) in &mut relays {
                relay.rounds.clear();
                relay.confirmed.clear();
            }
            for _ in 0..bench.options.rounds {
                for (relay, destination) in &mut relays {
                    relay.measure(&load, &bench.cores, |_| ());
                    destination.clear();
                }
            }
            for (relay, _) in &relays {
                let row: [Cell; 2] = [sink.name().into(), connections.into()];
                table.push(
                    row.into_iter()
                        .chain(relay.cells(&relays[0].0.rounds))
                        .collect(),
                );
                memory = memory.max(medians(&relay.rounds).memory);
            }
            let (broker, _) = &relays[2];
            let what = format!(
                "answers after the broker: {}, {connections} connections",
                sink.name()
            );
            let share = median(broker.confirmed.iter().copied());
            report
                .targets
                .push(Target::at_least(what, MIN_CONFIRMED_SHARE, share));
        }
    }
    report.tables.push(table);
    let target = Target::at_most("peak memory, MiB", MAX_MEMORY_MIB, memory);
    report.targets.push(target);
    report
}
