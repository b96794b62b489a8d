//! Faults of the relay: killed, stopped, started twice.

use std::time::Duration;

use super::super::broker::Sink;
use super::super::stage::Stage;
use super::{EVERY, Scenario};

pub const ALL: [Scenario; 5] = [
    Scenario {
        name: "relay_killed",
        sinks: EVERY,
        // Events in flight, and events confirmed since the cursor was last saved (every tenth of a second).
        duplicates: 400,
        recovery: Duration::from_secs(30),
        run: killed,
    },
    Scenario {
        name: "killed_at_start",
        sinks: EVERY,
        duplicates: 400,
        recovery: Duration::from_secs(30),
        run: killed_at_start,
    },
    Scenario {
        name: "everything_killed",
        sinks: &[Sink::KafkaExactlyOnce],
        duplicates: 0,
        recovery: Duration::from_secs(60),
        run: everything_killed,
    },
    Scenario {
        name: "relay_stopped",
        sinks: EVERY,
        duplicates: 0,
        recovery: Duration::from_secs(30),
        run: stopped,
    },
    Scenario {
        name: "second_relay",
        sinks: EVERY,
        duplicates: 0,
        recovery: Duration::from_secs(30),
        run: second,
    },
];

/// `kill -9` at random moments: while the relay catches up, and after it has caught up.
fn killed(stage: &mut Stage<'_>) {
    stage.begin();
    for round in 0..stage.pick(6, 55) {
        stage.run_up_to(Duration::from_millis(1200));
        stage.kill_relay();
        stage.restart_relay();
        if round % 2 == 0 {
            stage.catch_up();
        }
    }
    stage.catch_up();
}

/// `kill -9`, also while the next relay opens the spool, connects and publishes its first events.
fn killed_at_start(stage: &mut Stage<'_>) {
    stage.begin();
    for _ in 0..stage.pick(4, 25) {
        stage.run_up_to(Duration::from_millis(300));
        stage.kill_relay();
        for _ in 0..4 {
            stage.start_and_kill_relay(Duration::from_millis(200));
        }
        stage.restart_relay();
        stage.catch_up();
    }
}

/// Kills the relay many times (`kill -9`), and sometimes kills or freezes the broker, too.
fn everything_killed(stage: &mut Stage<'_>) {
    stage.use_short_timeouts();
    stage.begin();
    for round in 1..=stage.pick(10, 220) {
        stage.run_up_to(Duration::from_millis(1200));
        match round % 10 {
            3 => {
                stage.broker().kill();
                stage.run_up_to(Duration::from_secs(1));
                stage.kill_relay();
                stage.broker().resume();
            }
            7 => {
                stage.broker().freeze();
                stage.run_up_to(Duration::from_secs(6));
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

/// SIGTERM under load, with a spool that retains nothing: the next start finds empty tables, and must not assign
/// sequence numbers again.
fn stopped(stage: &mut Stage<'_>) {
    stage.set("RECALL_SPOOL__RETENTION", "0s");
    stage.begin();
    for _ in 0..stage.pick(4, 30) {
        stage.run_up_to(Duration::from_millis(1500));
        stage.stop_relay();
        stage.restart_relay();
    }
    stage.catch_up();
}

/// A second relay on the same spool exits, and the first one is not affected.
fn second(stage: &mut Stage<'_>) {
    stage.begin();
    for _ in 0..stage.pick(3, 20) {
        stage.run_up_to(Duration::from_millis(500));
        let (code, _, log) = stage.setup.run(&[]);
        if code != 1 || !log.contains("is in use by another process") {
            stage.report_problem(format!("the second relay exited with {code}: {log}"));
        }
    }
    stage.run_for(Duration::from_millis(500));
}
