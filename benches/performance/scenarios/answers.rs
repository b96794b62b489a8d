//! The cost of a durable answer including forwarding, compared with a server that stores nothing.

use std::mem;

use super::super::bench::{Bench, Destination, Sink};
use super::super::columns::{ROUND_COLUMNS, cells};
use super::super::load::Load;
use super::super::round::{Round, SinkWait, measure, medians, ratio};
use super::super::server::Server;
use super::super::table::{Cell, Report, Table, Target};
use super::{MAX_MEMORY_MIB, warm_up};

pub const NAME: &str = "answers";

const CONNECTIONS: [u32; 4] = [1, 8, 64, 256];

/// The maximum lag of a sink that keeps up, at the end of the load, in seconds of answers.
const MAX_LAG_SECONDS: f64 = 0.25;

/// The maximum CPU time per callback relative to the bare server, by connections and sink.
const MAX_CPU_RATIOS: [(u32, Sink, f64); 4] = [
    (64, Sink::Stdout, 2.0),
    (256, Sink::Stdout, 1.7),
    (64, Sink::Kafka, 2.4),
    (256, Sink::Kafka, 2.1),
];

/// The minimum of answers per second relative to the bare server, by connections.
const MIN_ANSWERS_RATIOS: [(u32, f64); 2] = [(64, 0.45), (256, 0.60)];

/// A relay and the destination of its events.
struct Relay {
    name: &'static str,
    server: Server,
    /// `None` if the broker is down.
    destination: Option<Destination>,
    rounds: Vec<Round>,
}

impl Relay {
    fn sink_wait(&self) -> SinkWait<'static> {
        let until_drained =
            |destination: &Destination| SinkWait::UntilDrained(destination.sink.name());
        self.destination
            .as_ref()
            .map_or(SinkWait::Ignored, until_drained)
    }
}

pub fn run(bench: &mut Bench) -> Report {
    let bare = bench.bare();
    warm_up(&bare, &bench.cores, SinkWait::Ignored);
    let mut relays = relays(bench);
    let columns: Vec<_> = [
        ("connections", "connections"),
        ("server", "server"),
        ("of bare", "answers_of_bare"),
        ("CPU of bare", "cpu_of_bare"),
    ]
    .into_iter()
    .chain(ROUND_COLUMNS)
    .collect();
    let mut report = Report::new(NAME);
    let mut table = Table::new(
        "Every callback is answered after its event is on disk.",
        &columns,
    );
    let mut memory: f64 = 0.0;
    for connections in CONNECTIONS {
        let load = Load::new(connections, bench.options.round);
        // The servers alternate, so that a change of the machine's speed affects all of them.
        let mut bare_rounds = Vec::new();
        for _ in 0..bench.options.rounds {
            bare_rounds.push(measure(&bare, &load, &bench.cores, SinkWait::Ignored));
            for relay in &mut relays {
                let round = measure(&relay.server, &load, &bench.cores, relay.sink_wait());
                relay.rounds.push(round);
                // Otherwise the broker's disk fills up, because nothing consumes the messages.
                if let Some(destination) = &relay.destination {
                    destination.clear();
                }
            }
        }
        let mut push = |server: &str, rounds: &[Round]| {
            let mut row: Vec<Cell> = vec![connections.into(), server.into()];
            row.push(Cell::Number(
                ratio(rounds, &bare_rounds, |it| it.answers),
                2,
            ));
            row.push(Cell::Number(ratio(rounds, &bare_rounds, |it| it.cpu), 2));
            row.extend(cells(&medians(rounds)));
            table.push(row);
        };
        push("bare hyper", &bare_rounds);
        for relay in &mut relays {
            let rounds = mem::take(&mut relay.rounds);
            push(relay.name, &rounds);
            memory = memory.max(medians(&rounds).memory);
            if let Some(destination) = &relay.destination {
                targets(
                    &mut report,
                    connections,
                    destination.sink,
                    &rounds,
                    &bare_rounds,
                );
            }
        }
    }
    report.tables.push(table);
    let target = Target::at_most("peak memory, MiB", MAX_MEMORY_MIB, memory);
    report.targets.push(target);
    report
}

/// Starts one relay per sink, and one whose broker is down.
fn relays(bench: &mut Bench) -> Vec<Relay> {
    let mut relays: Vec<Relay> = Vec::new();
    for sink in Sink::ALL {
        let (server, destination) = bench.relay(sink);
        relays.push(Relay {
            name: sink.name(),
            server,
            destination: Some(destination),
            rounds: Vec::new(),
        });
    }
    relays.push(Relay {
        name: "kafka, down",
        server: bench.relay_without_broker(Sink::Kafka),
        destination: None,
        rounds: Vec::new(),
    });
    for relay in &relays {
        warm_up(&relay.server, &bench.cores, relay.sink_wait());
    }
    relays
}

fn targets(report: &mut Report, connections: u32, sink: Sink, rounds: &[Round], bare: &[Round]) {
    let name = format!("{}, {connections} connections", sink.name());
    let is_this = |&&(at, of, _): &&(u32, Sink, f64)| at == connections && of == sink;
    if let Some((.., bound)) = MAX_CPU_RATIOS.iter().find(is_this) {
        let figure = ratio(rounds, bare, |it| it.cpu);
        let what = format!("CPU of bare: {name}");
        report.targets.push(Target::at_most(what, *bound, figure));
        let seconds = medians(rounds).lag.unwrap_or_default() / medians(rounds).answers;
        let what = format!("seconds behind at the end: {name}");
        report
            .targets
            .push(Target::at_most(what, MAX_LAG_SECONDS, seconds));
    }
    let bound = MIN_ANSWERS_RATIOS.iter().find(|(at, _)| *at == connections);
    if let (Some((_, bound)), Sink::Stdout) = (bound, sink) {
        let figure = ratio(rounds, bare, |it| it.answers);
        let what = format!("answers/s of bare: {name}");
        report.targets.push(Target::at_least(what, *bound, figure));
    }
}
