//! What events are published to goes away under way: deleted, emptied, or made anew.
//!
//! What the broker had confirmed into a queue or topic is gone with it, and is nobody's loss but the
//! operator's. So that it can be told from what the relay loses, the relay stands still (SIGSTOP) while
//! it happens, with its connection and what is in flight: everything that reached the broker is read
//! before the deletion, everything else has to arrive afterwards. What is there in a transaction that has
//! not ended goes with the rest, although no subscriber has seen it.

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
        play: topic_deleted,
    },
    Scenario {
        name: "topic_made_anew",
        sinks: KAFKA,
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        play: topic_made_anew,
    },
    Scenario {
        name: "records_deleted",
        sinks: KAFKA,
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        play: records_deleted,
    },
    Scenario {
        name: "exchange_deleted",
        sinks: &[Sink::RabbitMq],
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        play: exchange_deleted,
    },
    Scenario {
        name: "queue_deleted",
        sinks: &[Sink::RabbitMq],
        duplicates: 2000,
        recovery: Duration::from_secs(60),
        play: queue_deleted,
    },
];

/// Deletes and says that the relay goes on then.
fn again_and_again(stage: &mut Stage<'_>, delete: fn(&mut Stage<'_>)) {
    stage.begin();
    for _ in 0..stage.pick(1, 6) {
        stage.play_on_until(Duration::from_secs(1));
        stage.freeze_relay();
        stage.read_before_it_goes();
        delete(stage);
        stage.mended();
        stage.thaw_relay();
        stage.play_on(Duration::from_millis(500));
        stage.catch_up();
    }
}

/// The relay creates it again.
fn topic_deleted(stage: &mut Stage<'_>) {
    again_and_again(stage, |stage| {
        let name = stage.name.clone();
        stage.broker().kafka().delete_topic(&name);
        stage.read_from_the_beginning();
    });
}

/// Another topic of the same name: it knows nothing of the producer, whose numbers do not begin at 0.
fn topic_made_anew(stage: &mut Stage<'_>) {
    again_and_again(stage, |stage| {
        let name = stage.name.clone();
        stage.broker().kafka().delete_topic(&name);
        stage.broker().kafka().create_topic(&name, 3, &[]);
        stage.read_from_the_beginning();
    });
}

/// The broker forgets what the producer wrote last.
fn records_deleted(stage: &mut Stage<'_>) {
    again_and_again(stage, |stage| {
        let name = stage.name.clone();
        stage.broker().kafka().delete_records(&name);
    });
}

fn exchange_deleted(stage: &mut Stage<'_>) {
    again_and_again(stage, |stage| {
        let name = stage.name.clone();
        stage.broker().rabbitmq().with_channel(async |channel| {
            let options = lapin::options::ExchangeDeleteOptions::default();
            let deleted = channel.exchange_delete(name.as_str().into(), options).await;
            deleted.expect("a deleted exchange");
        });
    });
}

fn queue_deleted(stage: &mut Stage<'_>) {
    again_and_again(stage, |stage| {
        let name = stage.name.clone();
        stage.broker().delete(&name);
    });
}
