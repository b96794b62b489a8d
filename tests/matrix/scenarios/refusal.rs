//! The broker is there, and does not take events: too large, no right, no space, no memory.

use std::time::Duration;

use super::super::broker::{Program, Sink};
use super::super::rig::{large_recall, read_dead_letters, recall_query};
use super::super::stage::Stage;
use super::{EVERY, Scenario};

pub const ALL: [Scenario; 4] = [
    Scenario {
        name: "too_large",
        sinks: EVERY,
        // Each ends a session with what is in flight, and is looked for one by one.
        duplicates: 4000,
        recovery: Duration::from_secs(60),
        play: too_large,
    },
    Scenario {
        name: "no_permission",
        sinks: EVERY,
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        play: no_permission,
    },
    Scenario {
        name: "queue_full",
        sinks: &[Sink::RabbitMq],
        duplicates: 0,
        recovery: Duration::from_secs(60),
        play: queue_full,
    },
    Scenario {
        name: "memory_alarm",
        sinks: &[Sink::RabbitMq],
        duplicates: 0,
        recovery: Duration::from_secs(60),
        play: memory_alarm,
    },
];

/// Bytes that the broker takes in one message. Kafka holds a whole batch to it.
const LIMIT: &str = "20000";

/// Some messages among good ones are larger than the broker takes: they go to the dead letters, or stay
/// in the spool's table where those do not take them either, and the others go on.
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
        stage.play_on_until(Duration::from_millis(800));
        stage.mended();
        let body = large_recall(&format!("large-{number}"), 40_000);
        let answer = stage.relay().post(&recall_query(), body);
        assert!(answer.is_ok(), "{answer:?}");
        stage.play_on(Duration::from_millis(300));
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
    // More, where one was on its way to the dead letters when a session ended.
    if dead < times {
        stage.complain(format!(
            "{dead} dead letters for {times} that are too large"
        ));
    }
}

/// The right to publish is taken away under way, and given back.
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
            permit(stage, Right::Given);
            stage.set("RECALL_RABBITMQ__URI", &uri);
        }
    }
    stage.begin();
    for _ in 0..stage.pick(1, 5) {
        stage.play_on_until(Duration::from_millis(800));
        permit(stage, Right::Taken);
        stage.play_on(stage.pick(Duration::from_secs(2), Duration::from_secs(15)));
        stage.expect_behind();
        stage.mended();
        permit(stage, Right::Given);
        stage.catch_up();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Right {
    Given,
    Taken,
}

fn permit(stage: &mut Stage<'_>, right: Right) {
    let name = stage.name.clone();
    match &stage.broker().program {
        Program::Kafka(kafka) => kafka.allow_writing(&name, right == Right::Given),
        Program::RabbitMq(rabbitmq) => {
            let what = if right == Right::Given { ".*" } else { "^$" };
            rabbitmq.ctl(&["set_permissions", "limited", what, what, what]);
            if right == Right::Taken {
                // A channel that is open remembers what it was allowed.
                rabbitmq.ctl(&["close_all_connections", "rights have changed"]);
            }
        }
    }
}

/// The queue is at its limit and rejects; then the limit is a wide one, or none.
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
        stage.play_on(stage.pick(Duration::from_secs(2), Duration::from_secs(20)));
        stage.expect_behind();
        stage.mended();
        if round % 2 == 0 {
            stage.broker().rabbitmq().ctl(&["clear_policy", "full"]);
        } else {
            limit(stage, 10_000_000);
        }
        stage.catch_up();
    }
}

/// The broker is short of memory and blocks publishers; then it is not.
fn memory_alarm(stage: &mut Stage<'_>) {
    stage.impatient();
    stage.begin();
    let watermark = |stage: &mut Stage<'_>, part: &str| {
        let words = ["set_vm_memory_high_watermark", part];
        stage.broker().rabbitmq().ctl(&words);
    };
    for _ in 0..stage.pick(1, 5) {
        watermark(stage, "0");
        stage.play_on(stage.pick(Duration::from_secs(4), Duration::from_secs(40)));
        stage.expect_behind();
        stage.mended();
        watermark(stage, "0.4");
        stage.catch_up();
    }
}
