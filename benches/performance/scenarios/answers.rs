//! What a durable answer costs, its event forwarded: against a server that keeps nothing.

use std::mem;

use super::super::bench::{Bench, Destination, Sink};
use super::super::columns::{OF_A_ROUND, cells};
use super::super::load::Load;
use super::super::round::{Forwarding, Round, measure, medians, ratio};
use super::super::server::Server;
use super::super::table::{Cell, Report, Table, Target};
use super::{MEMORY_MIB, warm_up};

pub const NAME: &str = "answers";

const CONNECTIONS: [u32; 4] = [1, 8, 64, 256];

/// How far behind a sink that keeps up may be at the end of the load, in seconds of answers.
const BEHIND: f64 = 0.25;

/// CPU of a callback against the bare server's, at most: at so many connections, by sink.
const CPU: [(u32, Sink, f64); 4] = [
    (64, Sink::Stdout, 2.0),
    (256, Sink::Stdout, 1.7),
    (64, Sink::Kafka, 2.4),
    (256, Sink::Kafka, 2.1),
];

/// Answers in a second against the bare server's, at least.
const ANSWERS: [(u32, f64); 2] = [(64, 0.45), (256, 0.60)];

/// A relay, and where its events go.
struct Relay {
    name: &'static str,
    server: Server,
    /// None: the broker is not there.
    to: Option<Destination>,
    rounds: Vec<Round>,
}

impl Relay {
    fn forwarding(&self) -> Forwarding<'static> {
        let name = |to: &Destination| Forwarding::UntilDrained(to.sink.name());
        self.to.as_ref().map_or(Forwarding::Ignored, name)
    }
}

pub fn play(bench: &mut Bench) -> Report {
    let bare = bench.bare();
    warm_up(&bare, &bench.cores, Forwarding::Ignored);
    let mut relays = relays(bench);
    let columns: Vec<_> = [
        ("connections", "connections"),
        ("server", "server"),
        ("of bare", "answers_of_bare"),
        ("CPU of bare", "cpu_of_bare"),
    ]
    .into_iter()
    .chain(OF_A_ROUND)
    .collect();
    let mut report = Report::new(NAME);
    let mut table = Table::new("Every answer after its event is on disk.", &columns);
    let mut memory: f64 = 0.0;
    for connections in CONNECTIONS {
        let load = Load::new(connections, bench.options.round);
        let mut ceiling = Vec::new();
        for _ in 0..bench.options.rounds {
            ceiling.push(measure(&bare, &load, &bench.cores, Forwarding::Ignored));
            for relay in &mut relays {
                let round = measure(&relay.server, &load, &bench.cores, relay.forwarding());
                relay.rounds.push(round);
                if let Some(to) = &relay.to {
                    to.clear();
                }
            }
        }
        let mut push = |server: &str, rounds: &[Round]| {
            let mut row: Vec<Cell> = vec![connections.into(), server.into()];
            row.push(Cell::Number(ratio(rounds, &ceiling, |it| it.answers), 2));
            row.push(Cell::Number(ratio(rounds, &ceiling, |it| it.cpu), 2));
            row.extend(cells(&medians(rounds)));
            table.push(row);
        };
        push("bare hyper", &ceiling);
        for relay in &mut relays {
            let rounds = mem::take(&mut relay.rounds);
            push(relay.name, &rounds);
            memory = memory.max(medians(&rounds).memory);
            if let Some(to) = &relay.to {
                targets(&mut report, connections, to.sink, &rounds, &ceiling);
            }
        }
    }
    report.tables.push(table);
    let target = Target::at_most("peak memory, MiB", MEMORY_MIB, memory);
    report.targets.push(target);
    report
}

/// One for each sink, and one whose broker is away.
fn relays(bench: &mut Bench) -> Vec<Relay> {
    let mut relays: Vec<Relay> = Vec::new();
    for sink in Sink::ALL {
        let (server, to) = bench.relay(sink);
        relays.push(Relay {
            name: sink.name(),
            server,
            to: Some(to),
            rounds: Vec::new(),
        });
    }
    relays.push(Relay {
        name: "kafka, down",
        server: bench.relay_without_broker(Sink::Kafka),
        to: None,
        rounds: Vec::new(),
    });
    for relay in &relays {
        warm_up(&relay.server, &bench.cores, relay.forwarding());
    }
    relays
}

fn targets(report: &mut Report, connections: u32, sink: Sink, rounds: &[Round], bare: &[Round]) {
    let name = format!("{}, {connections} connections", sink.name());
    let here = |&&(at, of, _): &&(u32, Sink, f64)| at == connections && of == sink;
    if let Some((.., bound)) = CPU.iter().find(here) {
        let figure = ratio(rounds, bare, |it| it.cpu);
        let what = format!("CPU of bare: {name}");
        report.targets.push(Target::at_most(what, *bound, figure));
        let seconds = medians(rounds).lag.unwrap_or_default() / medians(rounds).answers;
        let what = format!("seconds behind at the end: {name}");
        report.targets.push(Target::at_most(what, BEHIND, seconds));
    }
    let bound = ANSWERS.iter().find(|(at, _)| *at == connections);
    if let (Some((_, bound)), Sink::Stdout) = (bound, sink) {
        let figure = ratio(rounds, bare, |it| it.answers);
        let what = format!("answers/s of bare: {name}");
        report.targets.push(Target::at_least(what, *bound, figure));
    }
}
