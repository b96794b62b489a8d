//! The broker's accidents: killed, absent, frozen.

use std::time::Duration;

use super::super::stage::Stage;
use super::{EVERY, Scenario};

pub const ALL: [Scenario; 3] = [
    Scenario {
        name: "broker_killed",
        sinks: EVERY,
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        play: killed,
    },
    Scenario {
        name: "broker_absent",
        sinks: EVERY,
        duplicates: 0,
        recovery: Duration::from_secs(60),
        play: absent,
    },
    Scenario {
        name: "broker_frozen",
        sinks: EVERY,
        duplicates: 10_000,
        recovery: Duration::from_secs(60),
        play: frozen,
    },
];

/// `kill -9` of the broker, and its start.
fn killed(stage: &mut Stage<'_>) {
    stage.begin();
    for _ in 0..stage.pick(1, 6) {
        stage.play_on_until(Duration::from_secs(1));
        stage.broker().kill();
        stage.play_on_until(Duration::from_secs(2));
        stage.broker().resume();
        stage.mended();
        stage.catch_up();
    }
}

/// The broker is not there for the whole load, and comes then.
fn absent(stage: &mut Stage<'_>) {
    stage.broker().stop();
    stage.start_relay();
    stage.start_load();
    stage.play_on(stage.pick(Duration::from_secs(3), Duration::from_secs(60)));
    stage.end_load();
    stage.expect_behind();
    stage.broker().resume();
    stage.mended();
    stage.catch_up();
}

/// The broker's clock stands still, and goes on: nobody closes a connection.
fn frozen(stage: &mut Stage<'_>) {
    stage.impatient();
    stage.begin();
    for _ in 0..stage.pick(1, 4) {
        stage.play_on_until(Duration::from_secs(1));
        stage.broker().freeze();
        stage.play_on(stage.pick(Duration::from_secs(5), Duration::from_secs(45)));
        stage.expect_behind();
        stage.broker().thaw();
        stage.mended();
        stage.catch_up();
    }
}
