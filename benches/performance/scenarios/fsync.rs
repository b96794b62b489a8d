//! The answer at one connection, where each has a commit to itself: next to a sync of the same disk.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::bench::{Bench, Sink};
use super::super::columns::{OF_A_ROUND, cells};
use super::super::cores::Place;
use super::super::load::Load;
use super::super::round::{Forwarding, measure, median, medians};
use super::super::table::{Cell, Report, Table, Target};
use super::warm_up;

pub const NAME: &str = "fsync";

/// What is appended before each sync: a page.
const PAGE: [u8; 4096] = [0xa5; 4096];

/// By how many milliseconds an answer may take longer than a sync.
const LONGER: f64 = 0.1;

pub fn play(bench: &mut Bench) -> Report {
    let bare = bench.bare();
    let (relay, _) = bench.relay(Sink::Stdout);
    warm_up(&relay, &bench.cores, Forwarding::UntilDrained("stdout"));
    let load = Load::new(1, bench.options.round);
    let folder = bench.new_folder();
    let (mut syncs, mut ceiling, mut rounds) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.options.rounds {
        let time = bench.options.half_round();
        syncs.push(bench.cores.on(Place::Server, || sync(folder.path(), time)));
        ceiling.push(measure(&bare, &load, &bench.cores, Forwarding::Ignored));
        let forwarding = Forwarding::UntilDrained("stdout");
        rounds.push(measure(&relay, &load, &bench.cores, forwarding));
    }
    let columns: Vec<_> = [("what", "what")].into_iter().chain(OF_A_ROUND).collect();
    let mut table = Table::new(
        "One connection: each answer waits for a sync of its own.",
        &columns,
    );
    let p50 = median(syncs.iter().map(|it| it.0));
    let p99 = median(syncs.iter().map(|it| it.1));
    let mut row: Vec<Cell> = vec!["4 KiB appended, fdatasync".into(), Cell::Nothing];
    row.extend([Cell::Number(p50, 3), Cell::Number(p99, 3)]);
    row.resize(columns.len(), Cell::Nothing);
    table.push(row);
    for (what, rounds) in [("bare hyper", &ceiling), ("stdout", &rounds)] {
        let mut row: Vec<Cell> = vec![what.into()];
        row.extend(cells(&medians(rounds)));
        table.push(row);
    }
    let longer = median(
        rounds
            .iter()
            .zip(&syncs)
            .map(|(round, sync)| round.p50 - sync.0),
    );
    Report {
        name: NAME,
        tables: vec![table],
        targets: vec![Target::at_most(
            "p50 longer than a sync, ms",
            LONGER,
            longer,
        )],
    }
}

/// Median and 99th percentile of an append and its sync, in milliseconds.
fn sync(folder: &Path, time: Duration) -> (f64, f64) {
    let mut file = File::create(folder.join("appended")).expect("a file");
    let (began, mut times) = (Instant::now(), Vec::new());
    while began.elapsed() < time {
        let began = Instant::now();
        file.write_all(&PAGE).expect("a page is written");
        file.sync_data().expect("a sync");
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}
