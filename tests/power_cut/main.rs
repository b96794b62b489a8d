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

mod cuts;
mod disk;
mod history;
mod load;
#[path = "../rig/mod.rs"]
mod rig;
mod scenario;
mod trace;
mod verdict;

use std::env;
use std::str::FromStr;
use std::time::Instant;

use cuts::{cut, cut_power};
use fastrand::Rng;
use history::Past;
use load::Size;
use scenario::{End, Scenario, record};
use tempfile::TempDir;

/// How many times the power is cut, over all tests of this file.
const CUTS: usize = 480;

/// How often a relay is started on what a cut has left, and the power cut again.
const GENERATIONS: usize = 3;

const SCENARIOS: usize = 6;

#[test]
fn small_events_that_leave_at_once() {
    prove(&Scenario {
        name: "small, at once",
        retention: "0s",
        away: false,
        size: Size::Small,
        count: 100,
        first_end: End::Stop,
    });
}

#[test]
fn large_events_that_leave_at_once() {
    prove(&Scenario {
        name: "large, at once",
        retention: "0s",
        away: false,
        size: Size::Mixed,
        count: 60,
        first_end: End::Stop,
    });
}

#[test]
fn events_that_are_retained() {
    prove(&Scenario {
        name: "retained",
        retention: "24h",
        away: false,
        size: Size::Mixed,
        count: 60,
        first_end: End::Stop,
    });
}

#[test]
fn events_that_no_broker_takes() {
    prove(&Scenario {
        name: "broker away",
        retention: "0s",
        away: true,
        size: Size::Mixed,
        count: 60,
        first_end: End::Stop,
    });
}

#[test]
fn events_of_a_relay_that_was_killed() {
    prove(&Scenario {
        name: "killed",
        retention: "0s",
        away: false,
        size: Size::Mixed,
        count: 60,
        first_end: End::Kill,
    });
}

/// The log that the next start finds is not on the disk, although it can be read.
#[test]
fn events_of_a_relay_whose_sync_failed() {
    prove(&Scenario {
        name: "failed sync",
        retention: "0s",
        away: true,
        size: Size::Mixed,
        count: 60,
        first_end: End::FailedSync,
    });
}

/// Records the scenario, cuts the power, and does the same on what one of the cuts has left.
fn prove(scenario: &Scenario) {
    let seed = setting("RECALL_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let cuts = setting("RECALL_TEST_CUTS")
        .unwrap_or(CUTS)
        .div_ceil(SCENARIOS * GENERATIONS);
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
        cut(&disk, rng.u64(..), image.path());
        start = Some((image, history.past(moment)));
    }
}

/// A folder in memory, where there is such a place: what is on it need not last.
fn scratch() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap_or_else(|_| TempDir::new().unwrap())
}

fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var_os(name)?;
    let value = text.to_str().and_then(|text| text.parse().ok());
    Some(value.unwrap_or_else(|| panic!("{name} is {}", text.display())))
}
