//! The broker runs but refuses events: too large, no permission, queue full, memory alarm.

use std::time::Duration;

use super::super::broker::{Program, Sink};
use super::super::rig::{large_recall, read_dead_letters, recall_query};
use super::super::stage::Stage;
use super::{EVERY, Scenario};

pub const ALL: [Scenario; 4] = [
    Scenario {
        name: "too_large",
        sinks: EVERY,
        // Each large event ends a session with others in flight, and the poison search publishes some of them again.
        duplicates: 4000,
        recovery: Duration::from_secs(60),
        run: too_large,
    },
    Scenario {
        name: "no_permission",
        sinks: EVERY,
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        run: no_permission,
    },
    Scenario {
        name: "queue_full",
        sinks: &[Sink::RabbitMq],
        duplicates: 0,
        recovery: Duration::from_secs(60),
        run: queue_full,
    },
    Scenario {
        name: "memory_alarm",
        sinks: &[Sink::RabbitMq],
        duplicates: 0,
        recovery: Duration::from_secs(60),
        run: memory_alarm,
    },
];

/// The broker's maximum message size in bytes. Kafka applies it to whole batches.
const LIMIT: &str = "20000";

/// Some messages exceed the broker's limit. They become dead letters, at the broker or, if it refuses those too, in the
/// spool; all others are published.
fn too_large(stage: &mut Stage<'_>) {
    let name = stage.name.clone();
    let size = |size: &str| format!("application:set_env(rabbit, max_message_size, {size}).");
    match &stage.broker().program {
        Program::Kafka(kafka) => kafka.create_topic(&name, 6, &[("max.message.bytes", LIMIT)]),
        Program::RabbitMq(rabbitmq) => drop(rabbitmq.ctl(&["eval", &size(LIMIT)])),
    }
    stage.begin();
    let times = stage.pick(3, 20);
    for number in 0..times {
        stage.run_up_to(Duration::from_millis(800));
        stage.fault_ended();
        let body = large_recall(&format!("large-{number}"), 40_000);
        let answer = stage.relay().post(&recall_query(), body);
        assert!(answer.is_ok(), "{answer:?}");
        stage.run_for(Duration::from_millis(300));
        stage.catch_up();
    }
    stage.end_load();
    stage.wait_until_empty();
    let dead = match &stage.broker().program {
        Program::Kafka(kafka) => kafka.read_all(&format!("{name}.dead")).len(),
        Program::RabbitMq(rabbitmq) => {
            rabbitmq.ctl(&["eval", &size("134217728")]);
            read_dead_letters(&stage.setup).len()
        }
    };
    // There may be more: a dead letter that was in flight when a session ended is published again.
    if dead < times {
        stage.report_problem(format!(
            "{dead} dead letters for {times} messages that are too large"
        ));
    }
}

/// The permission to publish is revoked under load, and granted again.
fn no_permission(stage: &mut Stage<'_>) {
    match stage.sink() {
        Sink::Kafka | Sink::KafkaExactlyOnce => {
            let setup = stage.setup.clone();
            stage.setup = stage.broker().kafka().as_user(setup);
        }
        Sink::RabbitMq => {
            let rabbitmq = stage.broker().rabbitmq();
            let uri = rabbitmq.uri().replace("guest:guest", "limited:secret");
            rabbitmq.ctl(&["add_user", "limited", "secret"]);
            set_permission(stage, Permission::Granted);
            stage.set("RECALL_RABBITMQ__URI", &uri);
        }
    }
    stage.begin();
    for _ in 0..stage.pick(1, 5) {
        stage.run_up_to(Duration::from_millis(800));
        set_permission(stage, Permission::Revoked);
        stage.run_for(stage.pick(Duration::from_secs(2), Duration::from_secs(15)));
        stage.expect_lag();
        stage.fault_ended();
        set_permission(stage, Permission::Granted);
        stage.catch_up();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Permission {
    Granted,
    Revoked,
}

fn set_permission(stage: &mut Stage<'_>, permission: Permission) {
    let name = stage.name.clone();
    match &stage.broker().program {
        Program::Kafka(kafka) => kafka.allow_writing(&name, permission == Permission::Granted),
        Program::RabbitMq(rabbitmq) => {
            let what = if permission == Permission::Granted {
                ".*"
            } else {
                "^$"
            };
            rabbitmq.ctl(&["set_permissions", "limited", what, what, what]);
            if permission == Permission::Revoked {
                // An open channel caches its permissions.
                rabbitmq.ctl(&["close_all_connections", "permissions have changed"]);
            }
        }
    }
}

/// The queue is at its limit and rejects messages; then the limit is raised or removed.
fn queue_full(stage: &mut Stage<'_>) {
    let limit = |stage: &mut Stage<'_>, length: u32| {
        let of = format!("^{}$", stage.name);
        let policy = format!(r#"{{"max-length":{length},"overflow":"reject-publish"}}"#);
        let words = ["set_policy", "full", &of, &policy, "--apply-to", "queues"];
        stage.broker().rabbitmq().ctl(&words);
    };
    stage.begin();
    for round in 0..stage.pick(2, 6) {
        limit(stage, 50);
        stage.run_for(stage.pick(Duration::from_secs(2), Duration::from_secs(20)));
        stage.expect_lag();
        stage.fault_ended();
        if round % 2 == 0 {
            stage.broker().rabbitmq().ctl(&["clear_policy", "full"]);
        } else {
            limit(stage, 10_000_000);
        }
        stage.catch_up();
    }
}

/// A memory alarm makes the broker block publishers.
fn memory_alarm(stage: &mut Stage<'_>) {
    stage.use_short_timeouts_in_short_form();
    stage.begin();
    let watermark = |stage: &mut Stage<'_>, part: &str| {
        let words = ["set_vm_memory_high_watermark", part];
        stage.broker().rabbitmq().ctl(&words);
    };
    for _ in 0..stage.pick(1, 5) {
        watermark(stage, "0");
        stage.run_for(stage.pick(Duration::from_secs(4), Duration::from_secs(40)));
        stage.expect_lag();
        stage.fault_ended();
        watermark(stage, "0.4");
        stage.catch_up();
    }
}
