//! What is measured. In an order in which brokers have to be started twice at most.

mod answers;
mod backlog;
mod broker_down;
mod catching_up;
mod comparison;
mod exactly_once;
mod fsync;
mod growth;
mod slow_disk;

use std::time::Duration;

use super::bench::Bench;
use super::cores::Cores;
use super::load::Load;
use super::round::{Forwarding, measure};
use super::server::Server;
use super::table::Report;

pub struct Scenario {
    pub name: &'static str,
    pub play: fn(&mut Bench) -> Report,
}

pub const ALL: [Scenario; 8] = [
    Scenario {
        name: answers::NAME,
        play: answers::play,
    },
    Scenario {
        name: fsync::NAME,
        play: fsync::play,
    },
    Scenario {
        name: broker_down::NAME,
        play: broker_down::play,
    },
    Scenario {
        name: catching_up::NAME,
        play: catching_up::play,
    },
    Scenario {
        name: growth::NAME,
        play: growth::play,
    },
    Scenario {
        name: slow_disk::NAME,
        play: slow_disk::play,
    },
    Scenario {
        name: exactly_once::NAME,
        play: exactly_once::play,
    },
    Scenario {
        name: backlog::NAME,
        play: backlog::play,
    },
];

/// What a relay may take at its peak, in every scenario.
const MEMORY_MIB: f64 = 64.0;

/// By what factor p99 may grow while a broker is away or behind.
const LONGER: f64 = 1.2;

/// Code, connections and caches as they are in use.
fn warm_up(server: &Server, cores: &Cores, forwarding: Forwarding<'_>) {
    let load = Load::new(64, Duration::from_secs(1));
    measure(server, &load, cores, forwarding);
}
