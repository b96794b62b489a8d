//! Simulates power cuts in a recorded history.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use fastrand::Rng;

use super::disk::{Disk, Fate};
use super::history::History;
use super::scenario::Scenario;
use super::scratch;
use super::verdict::Judge;

/// The folder in which the first wrong disk is kept for inspection.
const KEPT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/power-cut");

/// Cuts the power at random moments of a history, and examines the spool that is left.
pub fn cut_power(scenario: &Scenario, history: &History, cuts: usize, seed: u64, rng: &mut Rng) {
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
            scope.spawn(|| cut_at(part, scenario, history, &failures));
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{}, seed {seed}: {} of {cuts} cuts failed; the disk of one of them is kept in {KEPT}\n{}",
        history.name,
        failures.len(),
        failures[..failures.len().min(10)].join("\n")
    );
}

/// Each moment has a seed that determines what the cut leaves.
fn cut_at(
    moments: &[(usize, u64)],
    scenario: &Scenario,
    history: &History,
    failures: &Mutex<Vec<String>>,
) {
    let mut disk = history.disk.clone();
    let mut applied = 0;
    let mut judge = Judge::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for (moment, seed) in moments {
        for record in &history.records[applied..*moment] {
            disk.apply(record);
        }
        applied = *moment;
        let folder = scratch();
        let fate = cut(&disk, *seed, folder.path());
        let spool = folder.path().join("data/spool.db");
        let past = history.past(*moment);
        if let Err(wrong) = judge.examine(&runtime, &spool, scenario.sink(), &past) {
            let total = history.records.len();
            let mut failures = failures.lock().unwrap();
            if failures.is_empty() {
                let _ = fs::remove_dir_all(KEPT);
                fs::create_dir_all(KEPT).unwrap();
                cut(&disk, *seed, Path::new(KEPT));
            }
            failures.push(format!(
                "cut after {moment} of {total} records, {fate:?}: {wrong}"
            ));
        }
    }
}

/// Cuts the power, and writes what is left into `folder`.
pub fn cut(disk: &Disk, seed: u64, folder: &Path) -> Fate {
    let mut rng = Rng::with_seed(seed);
    let fate = Fate::ALL[rng.usize(..Fate::ALL.len())];
    disk.cut(fate, &mut rng, folder);
    fate
}
