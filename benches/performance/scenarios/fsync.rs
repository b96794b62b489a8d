//! Answers on one connection, each with its own commit, compared with a sync of the same disk.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::bench::{Bench, Sink};
use super::super::columns::{ROUND_COLUMNS, cells};
use super::super::cores::CoreSet;
use super::super::load::Load;
use super::super::round::{SinkWait, measure, median, medians};
use super::super::table::{Cell, Report, Table, Target};
use super::warm_up;

pub const NAME: &str = "fsync";

/// The page that is appended before each sync.
const PAGE: [u8; 4096] = [0xa5; 4096];

/// The maximum by which an answer may take longer than a sync.
const MAX_MS_OVER_SYNC: f64 = 0.1;

pub fn run(bench: &mut Bench) -> Report {
    let bare = bench.bare();
    let (relay, _) = bench.relay(Sink::Stdout);
    warm_up(&relay, &bench.cores, SinkWait::UntilDrained("stdout"));
    let load = Load::new(1, bench.options.round);
    let folder = bench.new_folder();
    let (mut syncs, mut bare_rounds, mut rounds) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.options.rounds {
        let time = bench.options.half_round();
        syncs.push(
            bench
                .cores
                .run_on(CoreSet::Server, || sync(folder.path(), time)),
        );
        bare_rounds.push(measure(&bare, &load, &bench.cores, SinkWait::Ignored));
        let sink_wait = SinkWait::UntilDrained("stdout");
        rounds.push(measure(&relay, &load, &bench.cores, sink_wait));
    }
    let columns: Vec<_> = [("what", "what")]
        .into_iter()
        .chain(ROUND_COLUMNS)
        .collect();
    let mut table = Table::new("Each answer waits for its own sync.", &columns);
    let p50 = median(syncs.iter().map(|it| it.0));
    let p99 = median(syncs.iter().map(|it| it.1));
    let mut row: Vec<Cell> = vec!["4 KiB appended, fdatasync".into(), Cell::Nothing];
    row.extend([Cell::Number(p50, 3), Cell::Number(p99, 3)]);
    row.resize(columns.len(), Cell::Nothing);
    table.push(row);
    for (what, rounds) in [("bare hyper", &bare_rounds), ("stdout", &rounds)] {
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
            MAX_MS_OVER_SYNC,
            longer,
        )],
    }
}

/// The median and 99th percentile of an append with its sync, in milliseconds.
fn sync(folder: &Path, time: Duration) -> (f64, f64) {
    let mut file = File::create(folder.join("appended")).expect("cannot create a file");
    let (began, mut times) = (Instant::now(), Vec::new());
    while began.elapsed() < time {
        let began = Instant::now();
        file.write_all(&PAGE).expect("cannot write a page");
        file.sync_data().expect("cannot sync the file");
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}
