//! The relay's machine is lost, with its spool, while answers wait for the broker.

use std::time::Duration;

use super::super::lost_machines::ANSWER_DEADLINE;
use super::super::stage::Stage;
use super::{EVERY, Scenario};

pub const ALL: [Scenario; 1] = [Scenario {
    name: "machine_lost",
    sinks: EVERY,
    duplicates: 400,
    recovery: Duration::from_secs(60),
    run: lost,
}];

pub const ON_CLUSTERS: [Scenario; 1] = [Scenario {
    name: "machine_lost_cluster",
    sinks: EVERY,
    duplicates: 400,
    recovery: Duration::from_secs(60),
    run: lost_on_cluster,
}];

/// Until answers do not wait any more for a broker that is in trouble.
const BREAKER_OPENS: Duration = ANSWER_DEADLINE.saturating_add(Duration::from_millis(500));

/// For how much longer the broker is in trouble, at most.
const TROUBLE: Duration = Duration::from_secs(2);

/// Loses the machine at random moments, most often while the broker works, sometimes while it is killed or frozen, or
/// while the relay publishes the backlog after that.
fn lost(stage: &mut Stage<'_>) {
    begin(stage);
    for round in 1..=stage.pick(12, 120) {
        stage.run_up_to(Duration::from_millis(1200));
        match round % 10 {
            3 => {
                stage.broker().kill();
                stage.run_for(BREAKER_OPENS);
                stage.run_up_to(TROUBLE);
                stage.expect_answers_after_disk();
                stage.lose_machine();
                stage.broker().resume();
            }
            6 => {
                stage.broker().freeze();
                stage.run_up_to(BREAKER_OPENS + TROUBLE);
                stage.lose_machine();
                stage.broker().thaw();
            }
            9 => {
                stage.broker().freeze();
                stage.run_for(BREAKER_OPENS);
                stage.run_up_to(TROUBLE);
                stage.broker().thaw();
                stage.run_up_to(Duration::from_millis(300));
                stage.lose_machine();
            }
            _ => stage.lose_machine(),
        }
        replace(stage);
        if round % 2 == 0 {
            stage.catch_up();
        }
    }
    stage.catch_up();
}

/// Loses the machine at random moments, and now and then one of the brokers' machines, too, which is replaced after the
/// relay's machine was lost four times.
fn lost_on_cluster(stage: &mut Stage<'_>) {
    begin(stage);
    for round in 0..120 {
        let node = round / 10 % 3;
        stage.run_up_to(Duration::from_millis(1200));
        if round % 10 == 2 {
            stage.broker().lose_node(node);
            stage.run_up_to(TROUBLE);
        }
        stage.lose_machine();
        replace(stage);
        if round % 10 == 5 {
            stage.catch_up();
            stage.broker().replace_node(node);
        }
        if round % 2 == 0 {
            stage.catch_up();
        }
    }
    stage.catch_up();
}

fn begin(stage: &mut Stage<'_>) {
    stage.set("RECALL_ANSWER_AFTER", "broker");
    let deadline = format!("{}ms", ANSWER_DEADLINE.as_millis());
    stage.set("RECALL_ANSWER_DEADLINE", &deadline);
    stage.start_on_new_machine();
    stage.start_load();
    stage.catch_up();
}

fn replace(stage: &mut Stage<'_>) {
    stage.fault_ended();
    stage.start_on_new_machine();
}
