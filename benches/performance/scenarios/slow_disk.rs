//! Disks whose syncs take longer: the library that the tests load into a relay delays each of them.

use std::time::Duration;

use super::super::bench::Bench;
use super::super::columns::{OF_A_ROUND, cells};
use super::super::cores::Place;
use super::super::load::Load;
use super::super::rig::Faults;
use super::super::round::{Forwarding, Round, measure, medians};
use super::super::server::Server;
use super::super::table::{Cell, Report, Table, Target};
use super::super::wait::wait;
use super::{MEMORY_MIB, warm_up};

pub const NAME: &str = "slow_disk";

/// By so many milliseconds each.
const DELAYS: [u32; 4] = [0, 2, 10, 100];

const CONNECTIONS: [u32; 3] = [1, 64, 256];

/// How long the syncs that a round has begun may take.
const SYNCS: Duration = Duration::from_secs(5);

pub fn play(bench: &mut Bench) -> Report {
    let columns = [
        ("sync takes longer by, ms", "sync_delay_ms"),
        ("connections", "connections"),
    ];
    let columns: Vec<_> = columns.into_iter().chain(OF_A_ROUND).collect();
    let title = "Events on standard output, each sync delayed.";
    let mut table = Table::new(title, &columns);
    let faults = Faults::new();
    let setup = bench.setup().with_faults(&faults);
    let relay = Server::relay(setup, &bench.cores, Place::Server);
    warm_up(&relay, &bench.cores, Forwarding::UntilDrained("stdout"));
    let mut memory: f64 = 0.0;
    for connections in CONNECTIONS {
        let load = Load::new(connections, bench.options.half_round());
        let mut rounds = DELAYS.map(|delay| (delay, Vec::new()));
        for _ in 0..bench.options.rounds {
            for (delay, rounds) in &mut rounds {
                let delay = Duration::from_millis(u64::from(*delay));
                faults.slow_syncs(delay);
                let forwarding = Forwarding::UntilDrained("stdout");
                rounds.push(measure(&relay, &load, &bench.cores, forwarding));
                wait_until_syncs_are_done(&faults, delay);
            }
        }
        for (delay, rounds) in &rounds {
            let round: Round = medians(rounds);
            let mut row: Vec<Cell> = vec![(*delay).into(), connections.into()];
            row.extend(cells(&round));
            table.push(row);
            memory = memory.max(round.memory);
        }
    }
    Report {
        name: NAME,
        tables: vec![table],
        targets: vec![Target::at_most("peak memory, MiB", MEMORY_MIB, memory)],
    }
}

/// The log may still be on its way into the file, and the next round would wait for that.
fn wait_until_syncs_are_done(faults: &Faults, delay: Duration) {
    let mut before = None;
    wait(SYNCS, 2 * delay, || {
        let syncs = faults.calls().syncs;
        before.replace(syncs) == Some(syncs)
    });
}
