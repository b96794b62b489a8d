//! A broker that is up, and does not take some events, or all.

use super::brokers::{DEAD_LETTER_TOPIC, TOPIC, ends, kafka_called, rabbitmq_called, with_kafka};
use super::page::{Incident, Seen};
use super::rig::{
    Broker as _, Kafka, RabbitMq, Relay, Setup, TIMEOUT, padded_recall, recall_query, until,
};

/// An event that is larger than the topic accepts.
#[test]
fn the_broker_refuses_an_event() {
    let kafka = Kafka::start();
    kafka.create_topic(TOPIC, 2, &[("max.message.bytes", "4000")]);
    kafka.create_topic(DEAD_LETTER_TOPIC, 2, &[]);
    let setup = kafka
        .settings(Setup::new(), TOPIC)
        .set("RECALL_KAFKA__DEAD_LETTER_TOPIC", DEAD_LETTER_TOPIC);
    let relay = with_kafka(&setup);
    let incident = kafka_called(Incident::begin("event-refused", &relay), &kafka);
    assert!(
        relay
            .post(&recall_query(), padded_recall("a", 2, 20_000))
            .is_ok()
    );
    until("the line", || relay.log_entry("poison_event"));
    relay.until_drained("kafka");
    let dead = kafka.read(DEAD_LETTER_TOPIC, 1, TIMEOUT);
    assert_eq!(dead[0].header("recall_reason"), Some("too_large"));
    let seen = Seen::of(&relay);
    let incident = incident.also_shows_metrics(&relay, &["recall_sink_refused_events_total"]);
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// A callback that cannot be parsed: its dead letter is among the events of standard output.
#[test]
fn a_callback_cannot_be_parsed() {
    let setup = Setup::new();
    let relay = setup.start();
    let incident = Incident::begin("callback-rejected", &relay);
    let body =
        r#"{"CallbackCommand": "Group.CallbackAfterRecallMsg", "GroupId": "a", "MsgSeqList": []}"#;
    assert_eq!(relay.post(&recall_query(), body).status, 400);
    until("the line", || relay.log_entry("callback_rejected"));
    let dead = relay.events(1);
    assert_eq!(dead[0]["type"], "com.tencent.im.callback.rejected");
    relay.until_drained("stdout");
    let seen = Seen::of(&relay);
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// Recalls that RabbitMQ does not take for this reason until it is mended.
fn not_taken(
    incident: Incident,
    rabbitmq: &RabbitMq,
    setup: &Setup,
    relay: Relay,
    reason: &str,
    mend: impl FnOnce(),
) {
    let incident = rabbitmq_called(incident, rabbitmq);
    relay.recalls("a", 1..=40);
    relay.until_down("rabbitmq", reason);
    let seen = Seen::of(&relay);
    mend();
    ends(incident, setup, relay, "rabbitmq", &seen);
}

#[test]
fn a_queue_is_full() {
    let rabbitmq = RabbitMq::shared();
    let policy = r#"{"max-length":5,"overflow":"reject-publish"}"#;
    let of = ["limit", "^incident-full$", policy, "--apply-to", "queues"];
    rabbitmq.ctl(&[&["set_policy"], &of[..]].concat());
    let setup = rabbitmq.settings(Setup::new(), "incident-full");
    let relay = setup.start();
    let incident = Incident::begin("queue-full", &relay).called("incident-full", TOPIC);
    not_taken(incident, &rabbitmq, &setup, relay, "basic.nack", || {
        rabbitmq.ctl(&["clear_policy", "limit"]);
    });
}

#[test]
fn no_queue_takes_the_events() {
    let rabbitmq = RabbitMq::shared();
    let exchange = "incident-unroutable";
    let setup = rabbitmq
        .settings(Setup::new(), exchange)
        .set("RECALL_RABBITMQ__QUEUE", "");
    let relay = setup.start();
    let incident = Incident::begin("events-unroutable", &relay).called(exchange, TOPIC);
    let reason = "events are unroutable";
    not_taken(incident, &rabbitmq, &setup, relay, reason, || {
        rabbitmq.bind_queue(exchange, "#");
    });
}
