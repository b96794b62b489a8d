//! The relay's own end: killed, stopped, started twice.

use std::time::Duration;

use super::super::broker::Sink;
use super::super::stage::Stage;
use super::{EVERY, Scenario};

pub const ALL: [Scenario; 5] = [
    Scenario {
        name: "relay_killed",
        sinks: EVERY,
        // In flight, and confirmed in the tenth of a second since the cursor was saved.
        duplicates: 400,
        recovery: Duration::from_secs(30),
        play: killed,
    },
    Scenario {
        name: "killed_at_start",
        sinks: EVERY,
        duplicates: 400,
        recovery: Duration::from_secs(30),
        play: killed_at_start,
    },
    Scenario {
        name: "everything_killed",
        sinks: &[Sink::KafkaExactlyOnce],
        duplicates: 0,
        recovery: Duration::from_secs(60),
        play: everything_killed,
    },
    Scenario {
        name: "relay_stopped",
        sinks: EVERY,
        duplicates: 0,
        recovery: Duration::from_secs(30),
        play: stopped,
    },
    Scenario {
        name: "second_relay",
        sinks: EVERY,
        duplicates: 0,
        recovery: Duration::from_secs(30),
        play: second,
    },
];

/// `kill -9` at random moments: while it catches up, and while it is up to date.
fn killed(stage: &mut Stage<'_>) {
    stage.begin();
    for round in 0..stage.pick(6, 55) {
        stage.play_on_until(Duration::from_millis(1200));
        stage.kill_relay();
        stage.restart_relay();
        if round % 2 == 0 {
            stage.catch_up();
        }
    }
    stage.catch_up();
}

/// `kill -9`, and again while the next one opens the spool, connects and publishes its first events.
fn killed_at_start(stage: &mut Stage<'_>) {
    stage.begin();
    for _ in 0..stage.pick(4, 25) {
        stage.play_on_until(Duration::from_millis(300));
        stage.kill_relay();
        for _ in 0..4 {
            stage.start_and_kill_relay(Duration::from_millis(200));
        }
        stage.restart_relay();
        stage.catch_up();
    }
}

/// `kill -9` of the relay again and again, and of the broker in between, which also stands still for a while.
fn everything_killed(stage: &mut Stage<'_>) {
    stage.make_impatient();
    stage.begin();
    for round in 1..=stage.pick(10, 220) {
        stage.play_on_until(Duration::from_millis(1200));
        match round % 10 {
            3 => {
                stage.broker().kill();
                stage.play_on_until(Duration::from_secs(1));
                stage.kill_relay();
                stage.broker().resume();
            }
            7 => {
                stage.broker().freeze();
                stage.play_on_until(Duration::from_secs(6));
                stage.kill_relay();
                stage.broker().thaw();
            }
            _ => stage.kill_relay(),
        }
        stage.restart_relay();
        if round % 2 == 0 {
            stage.catch_up();
        }
    }
    stage.catch_up();
}

/// SIGTERM under load, again and again, with a spool that keeps nothing once it is forwarded: the next
/// start finds empty tables, and must not give numbers out again.
fn stopped(stage: &mut Stage<'_>) {
    stage.set("RECALL_SPOOL__RETENTION", "0s");
    stage.begin();
    for _ in 0..stage.pick(4, 30) {
        stage.play_on_until(Duration::from_millis(1500));
        stage.stop_relay();
        stage.restart_relay();
    }
    stage.catch_up();
}

/// A second relay is refused, and the first one does not notice.
fn second(stage: &mut Stage<'_>) {
    stage.begin();
    for _ in 0..stage.pick(3, 20) {
        stage.play_on_until(Duration::from_millis(500));
        let (code, _, log) = stage.setup.run(&[]);
        if code != 1 || !log.contains("is in use by another process") {
            stage.complain(format!("the second relay ended with {code}: {log}"));
        }
    }
    stage.play_on(Duration::from_millis(500));
}
