//! Simulates power cuts: every recall that was acknowledged must be in the spool afterwards, or published.
//!
//! A real relay runs under load while `tests/faults/disk.c` records its operations on the disk. Then the power is cut
//! at random moments of that recording: the test builds a disk as it may look after the cut (disk.rs), opens the spool
//! on it and examines it (verdict.rs). On some of these disks the relay is started again, and the power is cut again.
//!
//! `cargo test` makes some hundreds of cuts. To make more, or to repeat the seed that a failure prints:
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

/// The number of cuts, over all tests of this file.
const CUTS: usize = 480;

/// How many times each scenario is recorded; each recording after the first starts on the disk that a cut has left.
const GENERATIONS: usize = 3;

const SCENARIOS: usize = 6;

#[test]
fn no_loss_with_small_events_purged_at_once() {
    check(&Scenario {
        name: "small, at once",
        retention: "0s",
        broker_down: false,
        size: Size::Small,
        count: 100,
        first_end: End::Stop,
    });
}

#[test]
fn no_loss_with_large_events_purged_at_once() {
    check(&Scenario {
        name: "large, at once",
        retention: "0s",
        broker_down: false,
        size: Size::Mixed,
        count: 60,
        first_end: End::Stop,
    });
}

#[test]
fn no_loss_with_retained_events() {
    check(&Scenario {
        name: "retained",
        retention: "24h",
        broker_down: false,
        size: Size::Mixed,
        count: 60,
        first_end: End::Stop,
    });
}

#[test]
fn no_loss_with_an_absent_broker() {
    check(&Scenario {
        name: "broker down",
        retention: "0s",
        broker_down: true,
        size: Size::Mixed,
        count: 60,
        first_end: End::Stop,
    });
}

#[test]
fn no_loss_after_a_killed_relay() {
    check(&Scenario {
        name: "killed",
        retention: "0s",
        broker_down: false,
        size: Size::Mixed,
        count: 60,
        first_end: End::Kill,
    });
}

/// The next start can read WAL frames that are not on the disk.
#[test]
fn no_loss_after_a_failed_sync() {
    check(&Scenario {
        name: "failed sync",
        retention: "0s",
        broker_down: true,
        size: Size::Mixed,
        count: 60,
        first_end: End::FailedSync,
    });
}

/// Records the scenario and cuts the power; then repeats this on the disk that one more cut leaves.
fn check(scenario: &Scenario) {
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

/// A temporary folder, in memory if possible, because it need not be durable.
fn scratch() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap_or_else(|_| TempDir::new().unwrap())
}

fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var_os(name)?;
    let value = text.to_str().and_then(|text| text.parse().ok());
    Some(value.unwrap_or_else(|| panic!("{name} is not valid: {}", text.display())))
}
