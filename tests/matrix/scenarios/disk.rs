//! Faults of the spool's disk (full, failing, hanging, damaged) and of the clock.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use super::super::stage::Stage;
use super::{EVERY, Scenario};

pub const ALL: [Scenario; 6] = [
    Scenario {
        name: "disk_full",
        sinks: EVERY,
        // The broker stops while events are in flight.
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        run: full,
    },
    Scenario {
        name: "writes_fail",
        sinks: EVERY,
        duplicates: 0,
        recovery: Duration::from_secs(30),
        run: writes_fail,
    },
    Scenario {
        name: "sync_fails",
        sinks: EVERY,
        duplicates: 400,
        recovery: Duration::from_secs(30),
        run: sync_fails,
    },
    Scenario {
        name: "sync_hangs",
        sinks: EVERY,
        duplicates: 0,
        recovery: Duration::from_secs(30),
        run: sync_hangs,
    },
    Scenario {
        name: "head_garbled",
        sinks: EVERY,
        // The cursor is lost: all retained events are published again.
        duplicates: 1_000_000,
        recovery: Duration::from_secs(30),
        run: head_garbled,
    },
    Scenario {
        name: "clock_jumps",
        sinks: EVERY,
        duplicates: 0,
        recovery: Duration::from_secs(30),
        run: clock_jumps,
    },
];

const HOUR: Duration = Duration::from_secs(3600);

/// The broker is down until the disk is full.
fn full(stage: &mut Stage<'_>) {
    stage.set("RECALL_SPOOL__RESERVE", "1MiB");
    let faults = stage.add_disk_faults();
    faults.set_capacity(3 << 20);
    stage.begin();
    for _ in 0..stage.pick(1, 4) {
        stage.broker().stop();
        stage.run_until_refused();
        stage.run_for(Duration::from_millis(500));
        stage.fault_ended();
        stage.broker().resume();
        // Published events are purged: callbacks are accepted again.
        stage.catch_up();
        stage.run_for(Duration::from_millis(500));
    }
}

fn writes_fail(stage: &mut Stage<'_>) {
    let faults = stage.add_disk_faults();
    stage.begin();
    for _ in 0..stage.pick(3, 20) {
        stage.run_up_to(Duration::from_millis(800));
        faults.fail_writes();
        stage.run_until_refused();
        stage.fault_ended();
        faults.heal();
        stage.catch_up();
    }
}

/// After a failed sync the relay exits with 1, and its supervisor restarts it.
fn sync_fails(stage: &mut Stage<'_>) {
    let faults = stage.add_disk_faults();
    stage.begin();
    for _ in 0..stage.pick(3, 20) {
        stage.run_up_to(Duration::from_millis(800));
        faults.fail_one_sync();
        stage.wait_for_exit();
        faults.heal();
        stage.restart_relay();
        stage.catch_up();
    }
}

fn sync_hangs(stage: &mut Stage<'_>) {
    let faults = stage.add_disk_faults();
    stage.begin();
    for _ in 0..stage.pick(1, 6) {
        stage.run_up_to(Duration::from_millis(800));
        faults.hang_syncs();
        stage.run_until_refused();
        stage.fault_ended();
        faults.heal();
        stage.catch_up();
    }
}

/// The first page of the database is overwritten, so that SQLite cannot open it. The WAL is checkpointed first, as in a
/// longer run: if the WAL had this page, SQLite would restore it.
fn head_garbled(stage: &mut Stage<'_>) {
    stage.begin();
    for _ in 0..stage.pick(2, 10) {
        stage.run_up_to(Duration::from_millis(800));
        stage.kill_relay();
        let spool = stage.setup.spool();
        rusqlite::Connection::open(&spool)
            .unwrap()
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
        let noise: Vec<u8> = (0..=250_u8).rev().cycle().take(4096).collect();
        let file = OpenOptions::new().write(true).open(spool).unwrap();
        file.write_all_at(&noise, 0).unwrap();
        stage.restart_relay();
        stage.catch_up();
    }
    let quarantined = stage.relay().readiness()["spool"]["quarantined"].clone();
    if quarantined.as_array().is_none_or(Vec::is_empty) {
        stage.report_problem("no damaged file was quarantined".to_owned());
    }
}

/// The wall clock is set back and forward by an hour.
fn clock_jumps(stage: &mut Stage<'_>) {
    let faults = stage.add_disk_faults();
    stage.begin();
    for _ in 0..stage.pick(2, 10) {
        faults.set_clock_back(HOUR);
        stage.run_up_to(Duration::from_secs(1));
        faults.set_clock_forward(HOUR);
        stage.run_up_to(Duration::from_secs(1));
        stage.fault_ended();
        faults.set_clock_back(Duration::ZERO);
        stage.catch_up();
    }
}
