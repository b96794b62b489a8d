//! Slow disks: the tests' fault library delays every sync of the relay.

use std::time::Duration;

use super::super::bench::Bench;
use super::super::columns::{ROUND_COLUMNS, cells};
use super::super::cores::CoreSet;
use super::super::load::Load;
use super::super::rig::Faults;
use super::super::round::{Round, SinkWait, measure, medians};
use super::super::server::Server;
use super::super::table::{Cell, Report, Table, Target};
use super::super::wait::wait;
use super::{MAX_MEMORY_MIB, warm_up};

pub const NAME: &str = "slow_disk";

const SYNC_DELAYS_MS: [u32; 4] = [0, 2, 10, 100];

const CONNECTIONS: [u32; 3] = [1, 64, 256];

/// The timeout for the syncs of a round to end.
const SYNC_TIMEOUT: Duration = Duration::from_secs(5);

pub fn run(bench: &mut Bench) -> Report {
    let columns = [
        ("sync takes longer by, ms", "sync_delay_ms"),
        ("connections", "connections"),
    ];
    let columns: Vec<_> = columns.into_iter().chain(ROUND_COLUMNS).collect();
    let title = "Events go to standard output, and each sync is delayed.";
    let mut table = Table::new(title, &columns);
    let faults = Faults::new();
    let setup = bench.setup().with_faults(&faults);
    let relay = Server::relay(setup, &bench.cores, CoreSet::Server);
    warm_up(&relay, &bench.cores, SinkWait::UntilDrained("stdout"));
    let mut memory: f64 = 0.0;
    for connections in CONNECTIONS {
        let load = Load::new(connections, bench.options.half_round());
        let mut rounds = SYNC_DELAYS_MS.map(|delay| (delay, Vec::new()));
        for _ in 0..bench.options.rounds {
            for (delay, rounds) in &mut rounds {
                let delay = Duration::from_millis(u64::from(*delay));
                faults.slow_syncs(delay);
                let sink_wait = SinkWait::UntilDrained("stdout");
                rounds.push(measure(&relay, &load, &bench.cores, sink_wait));
                wait_for_last_sync(&faults, delay);
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
        targets: vec![Target::at_most("peak memory, MiB", MAX_MEMORY_MIB, memory)],
    }
}

/// Waits until no sync follows: a checkpoint of the WAL may still be running, and would delay the next round.
fn wait_for_last_sync(faults: &Faults, delay: Duration) {
    let mut before = None;
    wait(SYNC_TIMEOUT, 2 * delay, || {
        let syncs = faults.calls().syncs;
        before.replace(syncs) == Some(syncs)
    });
}
