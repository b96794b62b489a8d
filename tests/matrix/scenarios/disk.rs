//! The spool's disk: full, failing, slow to sync, garbled; and the clock.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use super::super::stage::Stage;
use super::{EVERY, Scenario};

pub const ALL: [Scenario; 6] = [
    Scenario {
        name: "disk_full",
        sinks: EVERY,
        // The broker goes, with some on their way.
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        play: full,
    },
    Scenario {
        name: "writes_fail",
        sinks: EVERY,
        duplicates: 0,
        recovery: Duration::from_secs(30),
        play: writes_fail,
    },
    Scenario {
        name: "sync_fails",
        sinks: EVERY,
        duplicates: 400,
        recovery: Duration::from_secs(30),
        play: sync_fails,
    },
    Scenario {
        name: "sync_hangs",
        sinks: EVERY,
        duplicates: 0,
        recovery: Duration::from_secs(30),
        play: sync_hangs,
    },
    Scenario {
        name: "head_garbled",
        sinks: EVERY,
        // Where the sink stood is not known any more: all that is kept comes again.
        duplicates: 1_000_000,
        recovery: Duration::from_secs(30),
        play: head_garbled,
    },
    Scenario {
        name: "clock_jumps",
        sinks: EVERY,
        duplicates: 0,
        recovery: Duration::from_secs(30),
        play: clock_jumps,
    },
];

const HOUR: Duration = Duration::from_secs(3600);

/// The broker is away until the disk is full, and comes back.
fn full(stage: &mut Stage<'_>) {
    stage.set("RECALL_SPOOL__RESERVE", "1MiB");
    let faults = stage.put_faults();
    faults.set_capacity(3 << 20);
    stage.begin();
    for _ in 0..stage.pick(1, 4) {
        stage.broker().stop();
        stage.play_on_until_refused();
        stage.play_on(Duration::from_millis(500));
        stage.mended();
        stage.broker().resume();
        // Published events are purged: callbacks are accepted again.
        stage.catch_up();
        stage.play_on(Duration::from_millis(500));
    }
}

fn writes_fail(stage: &mut Stage<'_>) {
    let faults = stage.put_faults();
    stage.begin();
    for _ in 0..stage.pick(3, 20) {
        stage.play_on_until(Duration::from_millis(800));
        faults.fail_writes();
        stage.play_on_until_refused();
        stage.mended();
        faults.heal();
        stage.catch_up();
    }
}

/// A failed sync ends the program with 1, and whoever started it starts it again.
fn sync_fails(stage: &mut Stage<'_>) {
    let faults = stage.put_faults();
    stage.begin();
    for _ in 0..stage.pick(3, 20) {
        stage.play_on_until(Duration::from_millis(800));
        faults.fail_one_sync();
        stage.relay_ends();
        faults.heal();
        stage.restart_relay();
        stage.catch_up();
    }
}

fn sync_hangs(stage: &mut Stage<'_>) {
    let faults = stage.put_faults();
    stage.begin();
    for _ in 0..stage.pick(1, 6) {
        stage.play_on_until(Duration::from_millis(800));
        faults.hang_syncs();
        stage.play_on_until_refused();
        stage.mended();
        faults.heal();
        stage.catch_up();
    }
}

/// The first page of the file is noise: SQLite cannot open it any more. (If the WAL has that page, SQLite
/// restores it: so the WAL is checkpointed first, as a longer run would have done.)
fn head_garbled(stage: &mut Stage<'_>) {
    stage.begin();
    for _ in 0..stage.pick(2, 10) {
        stage.play_on_until(Duration::from_millis(800));
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
    let quarantined = stage.relay().readiness()["spool"]["put_aside"].clone();
    if quarantined.as_array().is_none_or(Vec::is_empty) {
        stage.complain("no damaged file was quarantined".to_owned());
    }
}

/// The wall clock is set back and forward by an hour.
fn clock_jumps(stage: &mut Stage<'_>) {
    let faults = stage.put_faults();
    stage.begin();
    for _ in 0..stage.pick(2, 10) {
        faults.set_clock_back(HOUR);
        stage.play_on_until(Duration::from_secs(1));
        faults.set_clock_forward(HOUR);
        stage.play_on_until(Duration::from_secs(1));
        stage.mended();
        faults.set_clock_back(Duration::ZERO);
        stage.catch_up();
    }
}
