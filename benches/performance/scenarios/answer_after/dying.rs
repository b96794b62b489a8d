//! The answers while the broker dies and is started again: the only node, or one of three.

use std::process::Command;
use std::time::Duration;

use nix::unistd::gettid;

use super::super::super::bench::{Bench, Sink};
use super::super::super::load::Load;
use super::super::super::round::{measure, medians};
use super::super::super::table::{Cell, Report, Table, Target};
use super::super::MAX_MEMORY_MIB;
use super::{DEADLINE_MS, Relay, columns};

pub const NAME: &str = "answer_after_dying";

/// By how many milliseconds p99.9 may exceed the deadline plus the p99.9 of answers after the disk.
const MAX_ABOVE_DEADLINE: f64 = 50.0;

/// The connections, and the mean pause of each between two callbacks. Together they send about 300 a second.
const CONNECTIONS: u32 = 64;
const PAUSE: Duration = Duration::from_millis(213);

/// The node is killed when this many events of a round are confirmed, after about a second.
const EVENTS_BEFORE_DEATH: u64 = 300;

/// A round takes this many times the usual duration, to include the restart.
const LONGER: u32 = 10;

/// How long the first events of a round may take to be confirmed.
const TIMEOUT: Duration = Duration::from_secs(60);

pub fn run(bench: &mut Bench) -> Report {
    let mut report = Report::new(NAME);
    let mut memory: f64 = 0.0;
    let first = [("sink", "sink"), ("nodes", "nodes")];
    let columns: Vec<_> = first.into_iter().chain(columns()).collect();
    let title = format!(
        "About 300 callbacks a second over {CONNECTIONS} connections. A node of the broker is killed after a second \
         and restarted at once; of three nodes, a different one in each round."
    );
    let mut table = Table::new(title, &columns);
    let load = Load {
        pause: PAUSE,
        ..Load::new(CONNECTIONS, LONGER * bench.options.round)
    };
    let before = Load {
        duration: Duration::from_secs(1),
        ..load
    };
    for (sink, nodes) in Sink::BROKERS
        .into_iter()
        .flat_map(|sink| [(sink, 1), (sink, 3)])
    {
        let mut broker = bench.start_broker(sink, nodes);
        let mut relays = ["disk", "broker"].map(|name| {
            let setup = broker.settings(bench.setup(), &format!("dying-{name}"));
            Relay::start(name, sink, setup, &bench.cores)
        });
        for node in (0..nodes).cycle().take(bench.options.rounds) {
            for relay in &mut relays {
                // Reconnects the sink, and lets answers wait for it again if they had stopped.
                measure(&relay.server, &before, &bench.cores, relay.sink_wait());
                relay.measure(&load, &bench.cores, |server| {
                    lower_priority();
                    let position = server.position(sink.name());
                    let first = position.expect("the relay has no position").cursor;
                    let until = first + EVENTS_BEFORE_DEATH;
                    server.wait_for_sink(sink.name(), TIMEOUT, |it| it.cursor >= until);
                    let node = broker.node(node);
                    node.kill();
                    node.resume();
                });
            }
        }
        let [disk, waiting] = &relays;
        for relay in [disk, waiting] {
            let row: [Cell; 2] = [sink.name().into(), Cell::Count(nodes as u64)];
            table.push(row.into_iter().chain(relay.cells(&disk.rounds)).collect());
            memory = memory.max(medians(&relay.rounds).memory);
        }
        // The worst round counts: to kill a node that leads nothing the relay publishes to has no effect.
        let pairs = waiting.rounds.iter().zip(&disk.rounds);
        let above = pairs.map(|(waiting, disk)| waiting.p999 - disk.p999 - f64::from(DEADLINE_MS));
        let what = format!(
            "p99.9 minus that of disk and the deadline while a node of {nodes} dies, ms: {}",
            sink.name()
        );
        report.targets.push(Target::at_most(
            what,
            MAX_ABOVE_DEADLINE,
            above.fold(f64::NEG_INFINITY, f64::max),
        ));
    }
    report.tables.push(table);
    let target = Target::at_most("peak memory, MiB", MAX_MEMORY_MIB, memory);
    report.targets.push(target);
    report
}

/// Gives this thread, and the processes that it starts, the lowest priority. Otherwise a broker that starts would delay
/// the generator, with which it shares cores, and all answers would seem late.
fn lower_priority() {
    let thread = gettid().to_string();
    let mut command = Command::new("renice");
    let output = command.args(["-n", "19", "-p", &thread]).output();
    let output = output.expect("cannot start renice");
    assert!(output.status.success(), "renice failed: {output:?}");
}
