//! Scenarios: a relay under load, whose operations on the disk are recorded.

use std::fs;
use std::path::Path;

use super::disk::Disk;
use super::history::{History, Past};
use super::load::{self, Size};
use super::{scratch, trace};
use crate::rig::{Faults, Relay, Setup};

/// How a relay is run while it is recorded.
pub struct Scenario {
    pub name: &'static str,
    pub retention: &'static str,
    /// Publishes to a broker that is never up; otherwise to standard output.
    pub broker_down: bool,
    pub size: Size,
    /// Recalls per connection in the second run: enough that the WAL is checkpointed during it. The first run sends a
    /// third of them.
    pub count: u64,
    pub first_end: End,
}

/// How the first of the two recorded runs ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Stop,
    Kill,
    FailedSync,
}

impl Scenario {
    pub const fn sink(&self) -> &'static str {
        if self.broker_down { "kafka" } else { "stdout" }
    }
}

/// Concurrent connections, so that one sync covers several events.
const CONNECTIONS: usize = 12;

/// Records two runs of a relay under load on a disk. The first ends as the scenario says; the second is killed.
pub fn record(scenario: &Scenario, generation: usize, image: Option<&Path>, past: Past) -> History {
    let faults = Faults::recording();
    let setup = Setup::on(scratch()).set("RECALL_SPOOL__RETENTION", scenario.retention);
    let setup = if scenario.broker_down {
        setup.set("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    } else {
        setup
    };
    let setup = setup.set("RECALL_DRAIN_TIMEOUT", "1s").with_faults(&faults);
    if let Some(image) = image {
        copy(image, setup.folder());
    }
    let disk = Disk::from_folder(setup.folder());

    let send = |relay: &Relay, run: &str, count: u64| {
        let run = format!("{run}{generation}");
        load::send_all(relay.callbacks, &run, CONNECTIONS, count, scenario.size)
    };
    let mut relay = setup.start();
    let mut acknowledged = send(&relay, "first", scenario.count / 3);
    match scenario.first_end {
        End::Stop => drop(relay.stop()),
        End::Kill => relay.kill(),
        End::FailedSync => {
            faults.fail_one_sync();
            acknowledged.extend(send(&relay, "failing", scenario.count));
            assert_eq!(relay.wait().code(), Some(1), "{}", relay.log());
        }
    }
    let relay = setup.start();
    acknowledged.extend(send(&relay, "second", scenario.count));
    if !scenario.broker_down {
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
    if !scenario.broker_down {
        let unpublished = history.unpublished();
        assert!(unpublished.is_empty(), "{}: {unpublished:?}", history.name);
    }
    history
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
