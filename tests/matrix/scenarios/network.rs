//! Faults of the network between relay and broker.

use std::time::Duration;

use super::super::rig::NetworkMode;
use super::super::stage::Stage;
use super::{EVERY, Scenario};

pub const ALL: [Scenario; 2] = [
    Scenario {
        name: "half_open",
        sinks: EVERY,
        duplicates: 10_000,
        recovery: Duration::from_secs(90),
        run: half_open,
    },
    Scenario {
        name: "slow_network",
        sinks: EVERY,
        duplicates: 10_000,
        recovery: Duration::from_secs(60),
        run: slow,
    },
];

/// All bytes are lost in both directions, and neither side is notified. Open connections never recover; new ones work
/// after the fault.
fn half_open(stage: &mut Stage<'_>) {
    stage.use_short_timeouts_in_short_form();
    stage.add_proxies();
    stage.begin();
    for _ in 0..stage.pick(1, 4) {
        stage.run_up_to(Duration::from_secs(1));
        stage.network(NetworkMode::DropPackets);
        stage.run_for(stage.pick(Duration::from_secs(4), Duration::from_secs(45)));
        stage.expect_lag();
        stage.network(NetworkMode::Open);
        stage.fault_ended();
        stage.catch_up();
    }
}

/// The round trip takes 100 ms, and the bandwidth is too low for the load.
fn slow(stage: &mut Stage<'_>) {
    stage.add_proxies();
    stage.begin();
    stage.network(NetworkMode::Slow {
        latency: Duration::from_millis(50),
        bytes_per_second: 64 << 10,
    });
    stage.run_for(stage.pick(Duration::from_secs(5), Duration::from_secs(60)));
    stage.expect_lag();
    stage.network(NetworkMode::Open);
    stage.fault_ended();
    stage.catch_up();
}
