//! The relay starts on a damaged spool, publishes what is still readable, and reports what is lost.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod rig;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rig::{Recall, Relay, Setup, under_load, until};
use serde_json::Value;
use tempfile::TempDir;

/// The result of a start on a damaged spool.
struct RestartOutcome {
    acknowledged: BTreeSet<Recall>,
    printed: BTreeSet<Recall>,
    readiness: Value,
    /// How often the relay exited first, because it found damage only when it read the damaged part.
    exits: usize,
    folder: PathBuf,
    _setup: Setup,
}

/// Fills a spool while the broker is down, kills the relay, damages the files, and restarts the relay with standard
/// output as the sink until it stays up.
fn damage(inflict: impl FnOnce(&Path)) -> RestartOutcome {
    let setup = Setup::new();
    let relay = setup
        .with("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
        .start();
    let acknowledged = under_load(&relay, || {});
    relay.kill();
    inflict(&setup.spool());
    for exits in 0..3 {
        let mut relay = setup.start();
        if let Some(readiness) = drained(&mut relay) {
            let status: Value = serde_json::from_slice(&relay.admin("/status").body).unwrap();
            // The starts before this one may have found some.
            if exits == 0 {
                assert_eq!(status["spool"]["lost_at_start"], readiness["spool"]["lost"]);
            }
            let printed = relay.stop().iter().map(recall).collect();
            return RestartOutcome {
                acknowledged: acknowledged.into_iter().collect(),
                printed,
                readiness,
                exits,
                folder: setup.spool().parent().unwrap().to_owned(),
                _setup: setup,
            };
        }
        assert!(
            relay.log_entry("spool_damaged").is_some(),
            "{}",
            relay.log()
        );
    }
    panic!("the relay exits on every start");
}

fn recall(event: &Value) -> Recall {
    Recall::of(event.to_string().as_bytes())
}

/// The answer of `/readyz` when all events are published, or `None` if the relay exits with 1.
fn drained(relay: &mut Relay) -> Option<Value> {
    until("the sink to drain or the relay to exit", || {
        if let Some(status) = relay.ended() {
            assert_eq!(status.code(), Some(1), "{}", relay.log());
            return Some(None);
        }
        let readiness = relay.try_readiness()?;
        (readiness["sinks"]["stdout"]["lag"] == 0).then_some(Some(readiness))
    })
}

impl RestartOutcome {
    fn number(&self, name: &str) -> usize {
        usize::try_from(self.readiness["spool"][name].as_u64().unwrap()).unwrap()
    }

    fn lost(&self) -> usize {
        self.number("lost")
    }

    fn missing(&self) -> usize {
        self.acknowledged.difference(&self.printed).count()
    }

    /// Every assigned number is published, or counted as lost or unreadable. (A few more events may have been
    /// committed than were acknowledged.)
    fn assert_loss_reported(&self) {
        assert_eq!(self.readiness["ready"], true);
        assert_eq!(
            self.printed.len() + self.lost() + self.number("unreadable"),
            self.number("last_seq")
        );
        assert!(self.acknowledged.len() <= self.number("last_seq"));
        println!(
            "{} acknowledged, {} missing, {} counted as lost, {} exits",
            self.acknowledged.len(),
            self.missing(),
            self.lost(),
            self.exits
        );
    }

    fn assert_quarantined(&self) {
        let reported = self.readiness["spool"]["quarantined"][0].as_str().unwrap();
        assert!(reported.contains("spool.db.damaged-"), "{reported}");
        let entries = fs::read_dir(&self.folder).unwrap();
        let names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(
            names.iter().any(|name| reported.ends_with(name)),
            "{names:?}"
        );
    }
}

fn overwrite_with_noise(path: &Path, at: u64, length: usize) {
    let noise: Vec<u8> = (0..=250_u8).rev().cycle().step_by(7).take(length).collect();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&noise, at).unwrap();
}

fn wal(database: &Path) -> PathBuf {
    database.with_extension("db-wal")
}

/// Checkpoints the WAL, as SQLite does during a longer run.
fn checkpoint(database: &Path) {
    let connection = rusqlite::Connection::open(database).unwrap();
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
}

/// The number of events in the database file. Reads a copy, because opening the database changes it.
fn events(database: &Path) -> usize {
    let folder = TempDir::new().unwrap();
    let copy = folder.path().join("copy.db");
    fs::copy(database, &copy).unwrap();
    let connection = rusqlite::Connection::open(copy).unwrap();
    let count = connection.query_row("SELECT count(*) FROM events", [], |row| row.get(0));
    count.unwrap()
}

#[test]
fn a_damaged_first_page_loses_nothing() {
    let aftermath = damage(|database| {
        checkpoint(database);
        overwrite_with_noise(database, 0, 4096);
    });
    aftermath.assert_loss_reported();
    aftermath.assert_quarantined();
    assert_eq!((aftermath.missing(), aftermath.exits), (0, 0));
    let damaged = aftermath.readiness["spool"]["damaged"].as_str().unwrap();
    assert!(damaged.contains("events were kept"), "{damaged}");
}

#[test]
fn a_damaged_middle_page_loses_its_events_and_reports_them() {
    let aftermath = damage(|database| {
        checkpoint(database);
        let middle = fs::metadata(database).unwrap().len() / 8192 * 4096;
        overwrite_with_noise(database, middle, 4096);
    });
    aftermath.assert_loss_reported();
    aftermath.assert_quarantined();
    assert!((1..=20).contains(&aftermath.lost()), "{}", aftermath.lost());
}

#[test]
fn a_truncated_file_loses_its_end_and_reports_it() {
    let aftermath = damage(|database| {
        checkpoint(database);
        let half = fs::metadata(database).unwrap().len() / 2;
        let file = OpenOptions::new().write(true).open(database).unwrap();
        file.set_len(half).unwrap();
    });
    aftermath.assert_loss_reported();
    aftermath.assert_quarantined();
    assert!(aftermath.lost() > 50 && aftermath.printed.len() > 50);
}

#[test]
fn a_removed_wal_is_reported() {
    let mut checkpointed = 0;
    let aftermath = damage(|database| {
        fs::remove_file(wal(database)).unwrap();
        checkpointed = events(database);
    });
    aftermath.assert_loss_reported();
    assert_eq!(aftermath.printed.len(), checkpointed);
}

/// SQLite ignores the frames after a damaged one; the high-water mark shows that they were committed.
#[test]
fn events_after_a_damaged_wal_frame_count_as_lost() {
    let aftermath = damage(|database| {
        let middle = fs::metadata(wal(database)).unwrap().len() / 2;
        overwrite_with_noise(&wal(database), middle, 100);
    });
    // How much is lost depends on the last checkpoint, but the count must be exact.
    aftermath.assert_loss_reported();
    assert_eq!(aftermath.exits, 0);
}
