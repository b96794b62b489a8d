//! The topic, queue or exchange is deleted, emptied or recreated while events are published to it.
//!
//! The deletion also removes events that the broker had confirmed, which is not a loss by the relay. To tell the two
//! apart, the relay is frozen (SIGSTOP) during the deletion, with its connection and the messages in flight: everything
//! that has reached the broker is read before the deletion, and everything else must arrive afterwards. Events in open
//! transactions are deleted, too, although no subscriber has received them.

use std::time::Duration;

use super::super::broker::Sink;
use super::super::stage::Stage;
use super::{KAFKA, Scenario};

pub const ALL: [Scenario; 5] = [
    Scenario {
        name: "topic_deleted",
        sinks: KAFKA,
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        run: topic_deleted,
    },
    Scenario {
        name: "topic_made_anew",
        sinks: KAFKA,
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        run: topic_made_anew,
    },
    Scenario {
        name: "records_deleted",
        sinks: KAFKA,
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        run: records_deleted,
    },
    Scenario {
        name: "exchange_deleted",
        sinks: &[Sink::RabbitMq],
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        run: exchange_deleted,
    },
    Scenario {
        name: "queue_deleted",
        sinks: &[Sink::RabbitMq],
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        run: queue_deleted,
    },
];

/// Calls `delete` several times under load, each time while the relay is frozen.
fn delete_repeatedly(stage: &mut Stage<'_>, delete: fn(&mut Stage<'_>)) {
    stage.begin();
    for _ in 0..stage.pick(1, 6) {
        stage.run_up_to(Duration::from_secs(1));
        stage.freeze_relay();
        stage.read_before_deletion();
        delete(stage);
        stage.fault_ended();
        stage.thaw_relay();
        stage.run_for(Duration::from_millis(500));
        stage.catch_up();
    }
}

/// The relay must create the topic again.
fn topic_deleted(stage: &mut Stage<'_>) {
    delete_repeatedly(stage, |stage| {
        let name = stage.name.clone();
        stage.broker().kafka().delete_topic(&name);
        stage.read_from_the_beginning();
    });
}

/// The topic is recreated: the new one has no producer state, but the producer's next sequence number is not 0.
fn topic_made_anew(stage: &mut Stage<'_>) {
    delete_repeatedly(stage, |stage| {
        let name = stage.name.clone();
        stage.broker().kafka().delete_topic(&name);
        stage.broker().kafka().create_topic(&name, 3, &[]);
        stage.read_from_the_beginning();
    });
}

/// The broker deletes all records, including the producer's last batches.
fn records_deleted(stage: &mut Stage<'_>) {
    delete_repeatedly(stage, |stage| {
        let name = stage.name.clone();
        stage.broker().kafka().delete_records(&name);
    });
}

fn exchange_deleted(stage: &mut Stage<'_>) {
    delete_repeatedly(stage, |stage| {
        let name = stage.name.clone();
        stage.broker().rabbitmq().with_channel(async |channel| {
            let options = lapin::options::ExchangeDeleteOptions::default();
            let deleted = channel.exchange_delete(name.as_str().into(), options).await;
            deleted.expect("cannot delete the exchange");
        });
    });
}

fn queue_deleted(stage: &mut Stage<'_>) {
    delete_repeatedly(stage, |stage| {
        let name = stage.name.clone();
        stage.broker().delete(&name);
    });
}
