//! A disk that is full, fails or hangs while the relay runs, and a wall clock that jumps.
//!
//! `tests/faults/disk.c` injects the faults. The full disk is a tmpfs if the test may mount one (root); otherwise
//! the library limits the size of the files and reports the free space.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use rig::{
    Connection, Faults, Recall, Relay, Setup, assert_kept, padded_recall, published, read_spool,
    recall_query, under_load, until,
};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn injected_faults_reach_the_relay() {
    let faults = Faults::new();
    let setup = Setup::new().with_faults(&faults);
    assert_eq!(faults.calls().opens, 0);
    let relay = setup.start();
    assert!(relay.recall("g", 1).is_ok());
    relay.until_drained("stdout");
    let calls = faults.calls();
    let all = [
        calls.opens,
        calls.reads,
        calls.writes,
        calls.syncs,
        calls.clock_reads,
    ];
    assert!(all.iter().all(|count| *count > 0), "{calls:?}");

    let began = Instant::now();
    faults.slow_syncs(Duration::from_millis(300));
    assert!(relay.recall("g", 2).is_ok());
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
    relay.stop();
}

#[test]
fn callbacks_are_refused_only_while_writes_fail() {
    let faults = Faults::new();
    let setup = Setup::new().with_faults(&faults);
    let relay = setup.start();
    let mut accepted = Vec::new();
    let mut acknowledged = under_load(&relay, || {
        faults.fail_writes();
        until_refused(&relay, "spool write failed");
        faults.heal();
        accepted.push(until_accepted(&relay));
    });
    acknowledged.extend(accepted);
    assert!(faults.calls().failed_writes > 0, "{:?}", faults.calls());
    assert_kept(&acknowledged, &published(&relay.stop()));
    assert_kept(&acknowledged, &read_spool(&setup));
}

#[test]
fn a_commit_with_a_failing_write_is_rolled_back() {
    let faults = Faults::new();
    let setup = Setup::new().with_faults(&faults);
    let relay = setup.start();
    let mut accepted = Vec::new();
    let mut acknowledged = under_load(&relay, || {
        for bytes in [100, 5000, 9000, 20_000] {
            faults.fill_up_after(bytes);
            until_refused(&relay, "full");
            faults.heal();
            accepted.push(until_accepted(&relay));
        }
    });
    acknowledged.extend(accepted);
    assert_kept(&acknowledged, &published(&relay.stop()));
    assert_kept(&acknowledged, &read_spool(&setup));
}

#[test]
fn a_failed_sync_ends_the_relay_and_a_restart_recovers() {
    for file in ["", "-wal"] {
        let faults = Faults::new();
        let setup = Setup::new().with_faults(&faults);
        let mut relay = setup.start();
        let load = rig::Load::start(relay.callbacks, "load", 6, Duration::from_millis(10));
        until("load", || (load.acknowledged() > 200).then_some(()));
        let mut connection = Connection::open(relay.callbacks).unwrap();
        faults.only(file);
        faults.fail_one_sync();
        // Send until an answer is not OK: the sync of this callback has failed, or the relay has exited.
        let late = (1..).map(|number| Recall::new("late", number));
        let late = late.take_while(|late| {
            let answer = connection.post_recall(&rig::recall(&late.group, late.number));
            answer.is_ok_and(|answer| answer.is_ok())
        });
        let mut acknowledged: Vec<Recall> = late.collect();
        assert_eq!(relay.wait().code(), Some(1), "{}", relay.log());
        assert_eq!(faults.calls().failed_syncs, 1);
        let log = relay.log();
        assert!(relay.log_entry("spool_failed").is_some(), "{log}");
        assert!(log.contains("disk I/O error"), "{log}");
        acknowledged.extend(load.stop());
        let mut events = published(&relay.events_after_exit());
        drop(relay);

        faults.heal();
        let relay = setup.start();
        acknowledged.push(until_accepted(&relay));
        events.extend(published(&relay.stop()));
        assert_kept(&acknowledged, &events);
        assert_kept(&acknowledged, &read_spool(&setup));
    }
}

#[test]
fn callbacks_waiting_for_a_failed_sync_are_answered_503() {
    let faults = Faults::new();
    let setup = Setup::new().with_faults(&faults);
    let mut relay = setup.start();
    faults.fail_syncs();
    let answer = relay.recall("g", 1);
    assert_eq!((answer.status, answer.is_ok()), (503, false), "{answer:?}");
    assert_eq!(relay.wait().code(), Some(1));
}

#[test]
fn callbacks_are_answered_in_time_while_a_sync_hangs() {
    let faults = Faults::new();
    let setup = Setup::new().with_faults(&faults);
    let relay = setup.start();
    let mut accepted = Vec::new();
    let mut acknowledged = under_load(&relay, || {
        faults.hang_syncs();
        let began = Instant::now();
        let answer = relay.recall("late", 1);
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.took < Duration::from_secs(2), "{answer:?}");
        until("/readyz to be 503", || {
            (relay.admin("/readyz").status == 503).then_some(())
        });
        assert_eq!(relay.admin("/livez").status, 200);
        until("five seconds", || {
            (began.elapsed() >= Duration::from_secs(5)).then_some(())
        });
        assert!(relay.log_entry("disk_stalled").is_some());
        faults.heal();
        accepted.push(until_accepted(&relay));
    });
    acknowledged.extend(accepted);
    until("the recovery to be logged", || {
        relay.log_entry("disk_recovered")
    });
    assert_kept(&acknowledged, &published(&relay.stop()));
}

#[test]
fn the_sink_is_down_while_reads_fail_then_catches_up() {
    let faults = Faults::new();
    let setup = Setup::new().with_faults(&faults);
    let relay = setup.start();
    let mut acknowledged = under_load(&relay, || {
        // The sink reads new events from the event cache: it must lag so far that it reads from the disk.
        let stdout_paused = relay.pause_stdout_reader();
        for number in 1..=120 {
            let answer = relay.post(&recall_query(), padded_recall("large", number, 200_000));
            assert!(answer.is_ok(), "{answer:?}");
        }
        faults.fail_reads();
        drop(stdout_paused);
        // First a failed read: on a slow disk, the sink may be down already because of the long pause.
        until("a read to fail", || {
            (faults.calls().failed_reads > 0).then_some(())
        });
        relay.until_sink("stdout", "down");
        faults.heal();
        relay.until_sink("stdout", "up");
    });
    acknowledged.extend((1..=120).map(|number| Recall::new("large", number)));
    relay.until_drained("stdout");
    assert_eq!(relay.readiness()["spool"]["unreadable"], 0);
    assert_kept(&acknowledged, &published(&relay.stop()));
}

#[test]
fn clock_jumps_neither_lose_nor_reorder_events() {
    let faults = Faults::new();
    let setup = Setup::new()
        .set("RECALL_SPOOL__RETENTION", "0s")
        .with_faults(&faults);
    let relay = setup.start();
    let mut jumped = Vec::new();
    let mut acknowledged = under_load(&relay, || {
        // The sink is down: retention must not purge its unconfirmed events.
        faults.fail_output();
        relay.until_sink("stdout", "down");
        faults.set_clock_back(HOUR);
        jumped.extend(relay.recalls("back", 1..=50));
        faults.set_clock_forward(HOUR);
        jumped.extend(relay.recalls("forward", 1..=50));
        let lag = relay.readiness()["sinks"]["stdout"]["lag"].as_u64();
        assert!(lag >= Some(100), "{lag:?}");
        faults.heal();
        relay.until_drained("stdout");
        faults.set_clock_back(HOUR);
    });
    acknowledged.extend(jumped);
    relay.until_drained("stdout");
    let events = relay.stop();
    assert_eq!(assert_kept(&acknowledged, &published(&events)), 0);
    // Check that the relay saw the clock jump.
    let received_at = |group: &str| {
        let first = events.iter().find(|event| event["subject"] == group);
        let time = first.unwrap()["data"]["received_at"].as_str().unwrap();
        time.parse::<jiff::Timestamp>().unwrap()
    };
    let [load, back, forward] = ["load-0", "back", "forward"].map(received_at);
    assert!(load > back + HOUR / 2, "{load:?} {back:?}");
    assert!(forward > load + HOUR / 2, "{load:?} {forward:?}");
}

#[test]
fn a_full_disk_recovers_without_a_restart() {
    let faults = Faults::new();
    let setup = Setup::new()
        .set("RECALL_SPOOL__RESERVE", "1MiB")
        .with_faults(&faults);
    let disk = SmallDisk::new(&setup, &faults);
    let relay = setup.start();
    faults.fail_output();
    let mut acknowledged = fill(&relay, "outage");
    assert!(acknowledged.len() > 200, "{}", acknowledged.len());
    let free = disk.free();
    assert!(free >= 256 << 10, "{free} bytes left of the reserve");
    until_refused(&relay, "spool.reserve");
    assert_kept(&acknowledged, &read_spool(&setup));
    // The rig reads the log in a thread of its own, so an entry may arrive after the answer.
    let refusals = |at_least: usize| {
        let count = || relay.log_entries("callbacks_refused").len();
        until("the refusal in the log", || {
            Some(count()).filter(|count| *count >= at_least)
        })
    };
    assert_eq!(refusals(1), 1, "logged more than once per outage");

    faults.heal();
    relay.until_drained("stdout");
    acknowledged.push(until_accepted(&relay));
    // The purge has freed space for new events.
    faults.fail_output();
    let more = fill(&relay, "second");
    assert!(more.len() > 200, "{}", more.len());
    until_refused(&relay, "spool.reserve");
    assert_eq!(refusals(2), 2, "logged more than once per outage");
    acknowledged.extend(more);
    faults.heal();
    relay.until_drained("stdout");
    assert_kept(&acknowledged, &published(&relay.stop()));
}

#[test]
fn callbacks_resume_after_another_program_frees_the_disk() {
    let faults = Faults::new();
    let setup = Setup::new()
        .set("RECALL_SPOOL__RESERVE", "1MiB")
        .with_faults(&faults);
    let disk = SmallDisk::new(&setup, &faults);
    let relay = setup.start();
    let mut accepted = Vec::new();
    let mut acknowledged = under_load(&relay, || {
        disk.fill_up();
        until_refused(&relay, "full");
        // Acknowledged events are published although the disk is full.
        relay.until_drained("stdout");
        disk.remove_filler();
        accepted.push(until_accepted(&relay));
    });
    acknowledged.extend(accepted);
    // The spool need not have all of them: forwarded events were purged to free space.
    assert_kept(&acknowledged, &published(&relay.stop()));
}

/// Waits until callbacks are refused and `/readyz` reports a reason that contains `why`.
#[track_caller]
fn until_refused(relay: &Relay, why: &str) {
    // Send several probes: a small event may still fit after a larger one was refused.
    let mut probes = 0;
    until("callbacks to be refused", || {
        probes += 1;
        let refused = relay.recall(&format!("probe {why} {probes}"), 1).status == 503;
        refused.then_some(())
    });
    until(&format!("/readyz to say {why:?}"), || {
        let readiness = relay.readiness();
        let reason = readiness["reason"].as_str().unwrap_or_default();
        (readiness["ready"] == false && reason.contains(why)).then_some(())
    });
}

/// Waits until callbacks are accepted again. Returns the accepted recall, so that the caller can look for its event.
#[must_use]
#[track_caller]
fn until_accepted(relay: &Relay) -> Recall {
    /// Each attempt sends a new recall, because a repeated one is answered OK without a write.
    static NUMBER: AtomicU64 = AtomicU64::new(1);

    until("/readyz to be 200", || {
        (relay.admin("/readyz").status == 200).then_some(())
    });
    let repeated = relay.outcome_count("repeated");
    let accepted = until("a callback to be accepted", || {
        let recall = Recall::new("accepted", NUMBER.fetch_add(1, Ordering::Relaxed));
        let answer = relay.recall(&recall.group, recall.number);
        answer.is_ok().then_some(recall)
    });
    assert_eq!(relay.outcome_count("repeated"), repeated, "{accepted:?}");
    accepted
}

/// Sends large recalls until one is refused; returns those that were acknowledged.
#[track_caller]
fn fill(relay: &Relay, group: &str) -> Vec<Recall> {
    let mut connection = Connection::open(relay.callbacks).unwrap();
    let mut acknowledged = Vec::new();
    for number in 1..10_000 {
        let body = padded_recall(group, number, 4000);
        let answer = connection.post_recall(&body).unwrap();
        if !answer.is_ok() {
            assert_eq!(answer.status, 503, "{}", answer.text());
            return acknowledged;
        }
        acknowledged.push(Recall::new(group, number));
    }
    panic!("the disk did not fill up");
}

/// A file system of 8 MiB for the spool's folder.
struct SmallDisk {
    folder: PathBuf,
    kind: Kind,
}

enum Kind {
    Mounted,
    /// The fault library limits the files to this many bytes.
    Simulated(u64),
}

impl SmallDisk {
    const BYTES: u64 = 8 << 20;

    fn new(setup: &Setup, faults: &Faults) -> Self {
        let folder = setup.spool().parent().unwrap().to_owned();
        fs::create_dir(&folder).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs"])
            .arg(&folder)
            .status()
            .is_ok_and(|status| status.success());
        let kind = if mounted {
            Kind::Mounted
        } else {
            // Not `eprintln!`: the test harness shows its output only if the test fails.
            let _ = writeln!(
                io::stderr(),
                "cannot mount a tmpfs: simulating the disk of 8 MiB"
            );
            faults.set_capacity(Self::BYTES);
            Kind::Simulated(Self::BYTES)
        };
        Self { folder, kind }
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    fn free(&self) -> u64 {
        match self.kind {
            Kind::Mounted => {
                let disk = statvfs(&self.folder).unwrap();
                disk.blocks_available() * disk.fragment_size()
            }
            Kind::Simulated(bytes) => {
                let files = fs::read_dir(&self.folder).unwrap();
                let used: u64 = files
                    .map(|file| file.unwrap().metadata().unwrap().len())
                    .sum();
                bytes.saturating_sub(used)
            }
        }
    }

    /// Fills the free space with a file that is not the relay's.
    fn fill_up(&self) {
        let block = vec![b'x'; 64 << 10];
        let mut file = fs::File::create(self.filler()).unwrap();
        while self.free() > 0 {
            let part =
                usize::try_from(self.free()).map_or(block.len(), |free| free.min(block.len()));
            if file.write_all(&block[..part]).is_err() {
                return;
            }
        }
    }

    fn remove_filler(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Kind::Mounted = self.kind {
            // Lazy, because the relay of a failed test may still have files open.
            let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
        }
    }
}
