//! The network between relay and broker.

use std::time::Duration;

use super::super::rig::Way;
use super::super::stage::Stage;
use super::{EVERY, Scenario};

pub const ALL: [Scenario; 2] = [
    Scenario {
        name: "half_open",
        sinks: EVERY,
        duplicates: 10_000,
        recovery: Duration::from_secs(90),
        play: half_open,
    },
    Scenario {
        name: "slow_network",
        sinks: EVERY,
        duplicates: 10_000,
        recovery: Duration::from_secs(60),
        play: slow,
    },
];

/// Nothing arrives any more in either direction, and nobody is told. Connections of that time stay dead
/// for ever; new ones are fine once it is over.
fn half_open(stage: &mut Stage<'_>) {
    stage.impatient();
    stage.put_proxies();
    stage.begin();
    for _ in 0..stage.pick(1, 4) {
        stage.play_on_until(Duration::from_secs(1));
        stage.network(Way::Lost);
        stage.play_on(stage.pick(Duration::from_secs(4), Duration::from_secs(45)));
        stage.expect_behind();
        stage.network(Way::Open);
        stage.mended();
        stage.catch_up();
    }
}

/// A tenth of a second there and back, and less bandwidth than the load needs.
fn slow(stage: &mut Stage<'_>) {
    stage.put_proxies();
    stage.begin();
    stage.network(Way::Slow {
        latency: Duration::from_millis(50),
        bytes_per_second: 64 << 10,
    });
    stage.play_on(stage.pick(Duration::from_secs(5), Duration::from_secs(60)));
    stage.expect_behind();
    stage.network(Way::Open);
    stage.mended();
    stage.catch_up();
}
