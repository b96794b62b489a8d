//! The scenarios, ordered so that brokers are started at most twice.

mod answer_after;
mod answers;
mod backlog;
mod broker_down;
mod catching_up;
mod comparison;
mod exactly_once;
mod fsync;
mod growth;
mod slow_disk;
mod upstream;

use std::time::Duration;

use super::bench::Bench;
use super::cores::Cores;
use super::load::Load;
use super::round::{SinkWait, measure};
use super::server::Server;
use super::table::Report;

pub struct Scenario {
    pub name: &'static str,
    pub run: fn(&mut Bench) -> Report,
}

pub const ALL: [Scenario; 9] = [
    Scenario {
        name: answers::NAME,
        run: answers::run,
    },
    Scenario {
        name: upstream::NAME,
        run: upstream::run,
    },
    Scenario {
        name: fsync::NAME,
        run: fsync::run,
    },
    Scenario {
        name: broker_down::NAME,
        run: broker_down::run,
    },
    Scenario {
        name: catching_up::NAME,
        run: catching_up::run,
    },
    Scenario {
        name: growth::NAME,
        run: growth::run,
    },
    Scenario {
        name: slow_disk::NAME,
        run: slow_disk::run,
    },
    Scenario {
        name: exactly_once::NAME,
        run: exactly_once::run,
    },
    Scenario {
        name: backlog::NAME,
        run: backlog::run,
    },
];

/// Scenarios that run only if they are named, so that a run of all others stays short.
pub const ON_REQUEST: [Scenario; 2] = [
    Scenario {
        name: answer_after::working::NAME,
        run: answer_after::working::run,
    },
    Scenario {
        name: answer_after::dying::NAME,
        run: answer_after::dying::run,
    },
];

/// The maximum of a relay's peak memory, in every scenario.
const MAX_MEMORY_MIB: f64 = 64.0;

/// The maximum ratio of p99 while a broker is down or catching up to the usual p99.
const MAX_P99_RATIO: f64 = 1.2;

/// Warms up code, connections and caches.
fn warm_up(server: &Server, cores: &Cores, sink_wait: SinkWait<'_>) {
    let load = Load::new(64, Duration::from_secs(1));
    measure(server, &load, cores, sink_wait);
}
