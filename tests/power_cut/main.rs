//! The power is cut: whatever was acknowledged is there when it comes back.
//!
//! A real relay runs under load while `tests/faults/disk.c` records what it does to its disk. Then the
//! power is cut at random moments of that recording: a disk is built as it may look afterwards (disk.rs),
//! and the spool on it is opened and examined (verdict.rs). On some of those disks the relay itself is
//! started again, and the power is cut once more.
//!
//! `cargo test` takes some hundreds of cuts. More of them, and the seed that a failure prints:
//!
//! ```text
//! RECALL_TEST_CUTS=5000 RECALL_TEST_SEED=1 cargo test --test power_cut -- --nocapture
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod disk;
mod history;
mod load;
#[path = "../rig/mod.rs"]
mod rig;
mod trace;
mod verdict;

use std::env;
use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use disk::{Disk, Fate};
use fastrand::Rng;
use history::{History, Past};
use load::Size;
use rig::{Faults, Setup};
use tempfile::TempDir;
use verdict::Judge;

/// How many times the power is cut, over all tests of this file.
const CUTS: usize = 480;

/// How often a relay is started on what a cut has left, and the power cut again.
const GENERATIONS: usize = 3;

/// What a relay does while it is recorded.
struct Scenario {
    name: &'static str,
    retention: &'static str,
    /// A broker that is never there; else standard output.
    away: bool,
    size: Size,
    /// Recalls on each of 12 connections.
    count: u64,
}

const CONNECTIONS: usize = 12;

#[test]
fn small_events_that_leave_at_once() {
    prove(&Scenario {
        name: "small, at once",
        retention: "0s",
        away: false,
        size: Size::Small,
        count: 100,
    });
}

#[test]
fn large_events_that_leave_at_once() {
    prove(&Scenario {
        name: "large, at once",
        retention: "0s",
        away: false,
        size: Size::Mixed,
        count: 30,
    });
}

#[test]
fn events_that_are_retained() {
    prove(&Scenario {
        name: "retained",
        retention: "24h",
        away: false,
        size: Size::Mixed,
        count: 30,
    });
}

#[test]
fn events_that_no_broker_takes() {
    prove(&Scenario {
        name: "broker away",
        retention: "0s",
        away: true,
        size: Size::Mixed,
        count: 30,
    });
}

/// Records the scenario, cuts the power, and does the same on what one of the cuts has left.
fn prove(scenario: &Scenario) {
    let seed = setting("RECALL_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let cuts = setting("RECALL_TEST_CUTS")
        .unwrap_or(CUTS)
        .div_ceil(4 * GENERATIONS);
    let mut rng = Rng::with_seed(seed);
    let mut start: Option<(TempDir, Past)> = None;
    for generation in 0..GENERATIONS {
        let began = Instant::now();
        let (image, past) = start.take().map_or_else(
            || (None, Past::default()),
            |(image, past)| (Some(image), past),
        );
        let history = record(
            scenario,
            generation,
            image.as_ref().map(TempDir::path),
            past,
        );
        let recorded = began.elapsed();
        let began = Instant::now();
        cut_power(scenario, &history, cuts, seed, &mut rng);
        eprintln!(
            "{}: {} records in {recorded:.1?}, {cuts} cuts in {:.1?}, seed {seed}",
            history.name,
            history.records.len(),
            began.elapsed()
        );

        let image = scratch();
        let moment = history.moment(&mut rng);
        let mut disk = history.disk.clone();
        for record in &history.records[..moment] {
            disk.apply(record);
        }
        disk.cut(
            Fate::ALL[rng.usize(..Fate::ALL.len())],
            &mut rng,
            image.path(),
        );
        start = Some((image, history.past(moment)));
    }
}

/// Runs the relay on a disk, under load, stops it, runs it again, and kills it.
fn record(scenario: &Scenario, generation: usize, image: Option<&Path>, past: Past) -> History {
    let faults = Faults::recording();
    let setup = Setup::on(scratch()).set("RECALL_SPOOL__RETENTION", scenario.retention);
    let setup = if scenario.away {
        setup.set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    } else {
        setup
    };
    let setup = setup.set("RECALL_DRAIN_TIMEOUT", "1s").with_faults(&faults);
    if let Some(image) = image {
        copy(image, setup.folder());
    }
    let disk = Disk::holding(setup.folder());

    let send = |relay: &rig::Relay, run: &str| {
        let run = format!("{run}{generation}");
        load::send_all(
            relay.callbacks,
            &run,
            CONNECTIONS,
            scenario.count,
            scenario.size,
        )
    };
    let relay = setup.start();
    let mut acknowledged = send(&relay, "first");
    relay.stop();
    let relay = setup.start();
    acknowledged.extend(send(&relay, "second"));
    if !scenario.away {
        relay.until_drained("stdout");
    }
    relay.kill();

    let name = format!("{}, generation {generation}", scenario.name);
    let records = trace::read(faults.trace());
    assert!(
        acknowledged.len() > CONNECTIONS,
        "{name}: {}",
        acknowledged.len()
    );
    let history = History::new(name, disk, records, acknowledged, past);
    if !scenario.away {
        let unpublished = history.unpublished();
        assert!(unpublished.is_empty(), "{}: {unpublished:?}", history.name);
    }
    history
}

/// Cuts the power at random moments of a history, and examines what is left.
fn cut_power(scenario: &Scenario, history: &History, cuts: usize, seed: u64, rng: &mut Rng) {
    let mut moments: Vec<(usize, u64)> = (0..cuts)
        .map(|_| (history.moment(rng), rng.u64(..)))
        .collect();
    moments.sort_unstable();
    let workers = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(4);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for part in moments.chunks(cuts.div_ceil(workers)) {
            let failures = &failures;
            scope.spawn(move || {
                let mut disk = history.disk.clone();
                let mut done = 0;
                let mut judge = Judge::default();
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                for (moment, seed) in part {
                    for record in &history.records[done..*moment] {
                        disk.apply(record);
                    }
                    done = *moment;
                    let mut rng = Rng::with_seed(*seed);
                    let fate = Fate::ALL[rng.usize(..Fate::ALL.len())];
                    let folder = scratch();
                    disk.cut(fate, &mut rng, folder.path());
                    let spool = folder.path().join("data/spool.db");
                    let sink = if scenario.away { "kafka" } else { "stdout" };
                    let past = history.past(*moment);
                    if let Err(wrong) = judge.examine(&runtime, &spool, sink, &past) {
                        let total = history.records.len();
                        let found =
                            format!("cut after {moment} of {total} records, {fate:?}: {wrong}");
                        failures.lock().unwrap().push(found);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{}, seed {seed}: {} of {cuts} cuts went wrong\n{}",
        history.name,
        failures.len(),
        failures[..failures.len().min(10)].join("\n")
    );
}

/// A folder in memory, where there is such a place: what is on it need not last.
fn scratch() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap_or_else(|_| TempDir::new().unwrap())
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&place).unwrap();
            copy(&entry.path(), &place);
        } else {
            fs::copy(entry.path(), place).unwrap();
        }
    }
}

fn setting<T: FromStr>(name: &str) -> Option<T> {
    env::var_os(name)?.to_str()?.parse().ok()
}
