//! Faults of the broker: killed, absent, frozen.

use std::time::Duration;

use super::super::stage::Stage;
use super::{EVERY, Scenario};

pub const ALL: [Scenario; 3] = [
    Scenario {
        name: "broker_killed",
        sinks: EVERY,
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        run: killed,
    },
    Scenario {
        name: "broker_absent",
        sinks: EVERY,
        duplicates: 0,
        recovery: Duration::from_secs(60),
        run: absent,
    },
    Scenario {
        name: "broker_frozen",
        sinks: EVERY,
        duplicates: 10_000,
        recovery: Duration::from_secs(60),
        run: frozen,
    },
];

/// The broker is killed (`kill -9`) and restarted.
fn killed(stage: &mut Stage<'_>) {
    stage.begin();
    for _ in 0..stage.pick(1, 6) {
        stage.run_up_to(Duration::from_secs(1));
        stage.broker().kill();
        stage.run_up_to(Duration::from_secs(2));
        stage.broker().resume();
        stage.fault_ended();
        stage.catch_up();
    }
}

/// The broker is down while the load runs, and is started afterwards.
fn absent(stage: &mut Stage<'_>) {
    stage.broker().stop();
    stage.start_relay();
    stage.start_load();
    stage.run_for(stage.pick(Duration::from_secs(3), Duration::from_secs(60)));
    stage.end_load();
    stage.expect_lag();
    stage.broker().resume();
    stage.fault_ended();
    stage.catch_up();
}

/// The broker is frozen and thawed; no connection is closed.
fn frozen(stage: &mut Stage<'_>) {
    stage.use_short_timeouts_in_short_form();
    stage.begin();
    for _ in 0..stage.pick(1, 4) {
        stage.run_up_to(Duration::from_secs(1));
        stage.broker().freeze();
        stage.run_for(stage.pick(Duration::from_secs(5), Duration::from_secs(45)));
        stage.expect_lag();
        stage.broker().thaw();
        stage.fault_ended();
        stage.catch_up();
    }
}
