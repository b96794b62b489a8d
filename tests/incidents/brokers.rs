//! A broker that is down, or refuses what the relay does.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::FieldTable;

use super::page::{Incident, Seen};
use super::rig::kafka::{Operation, Resource};
use super::rig::kafka::{PASSWORD, STRICT, USER};
use super::rig::{Broker, Kafka, RabbitMq, Relay, Setup, recall_query, until};

pub const TOPIC: &str = "im.message.recalled";
pub const DEAD_LETTER_TOPIC: &str = "im.message.recalled.dead-letter";

/// As the page calls the broker.
pub fn kafka_called(incident: Incident, kafka: &Kafka) -> Incident {
    incident
        .called(&kafka.bootstrap_servers(), "kafka-1:9092")
        .called(&kafka.sasl_servers(), "kafka-1:9092")
}

pub fn rabbitmq_called(incident: Incident, rabbitmq: &RabbitMq) -> Incident {
    incident.called(&format!("127.0.0.1:{}", rabbitmq.port()), "rabbitmq-1:5672")
}

/// Compares an incident at the broker with the page when it is over.
#[track_caller]
pub fn ends(incident: Incident, setup: &Setup, relay: Relay, sink: &str, seen: &Seen) {
    relay.until_drained(sink);
    // Before, the log has had none: the sink was up before its first event.
    until("the end in the log", || relay.log_entry("sink_caught_up"));
    incident.compare_with_page(setup, &relay.log(), Some(seen));
    relay.stop();
}

/// A relay whose Kafka is up and has one event.
pub fn with_kafka(setup: &Setup) -> Relay {
    let relay = setup.start();
    until("kafka to be up", || relay.log_entry("sink_up"));
    relay.recalls("a", 1..=1);
    relay.until_drained("kafka");
    relay
}

fn broker_is_down(name: &'static str, lasting: Option<Duration>) {
    let mut kafka = Kafka::start();
    let setup = kafka.settings(Setup::new(), TOPIC);
    let relay = with_kafka(&setup);
    let incident = kafka_called(Incident::begin(name, &relay), &kafka);
    kafka.stop();
    relay.recalls("a", 2..=50);
    relay.until_sink("kafka", "down");
    if let Some(lasting) = lasting {
        super::rig::poll(lasting, || false);
        let reminders = relay.log_entries("sink_still_down");
        let after = |seconds| reminders.iter().any(|entry| entry["seconds"] == seconds);
        assert!(after(60) && after(300), "{reminders:?}");
    }
    until("the events to wait", || {
        (relay.readiness()["sinks"]["kafka"]["lag"] == 49).then_some(())
    });
    let seen = Seen::of(&relay);
    kafka.resume();
    ends(incident, &setup, relay, "kafka", &seen);
}

#[test]
fn the_broker_is_down() {
    broker_is_down("broker-down", None);
}

/// Long enough for two reminders; later ones look the same.
#[test]
#[ignore = "takes five minutes"]
fn the_broker_is_down_for_an_hour() {
    broker_is_down("broker-down-for-an-hour", Some(Duration::from_secs(310)));
}

/// A Kafka on which the relay has only the rights that are documented.
fn strict_kafka() -> (Kafka, Setup) {
    let kafka = Kafka::start_with(&STRICT);
    for topic in [TOPIC, DEAD_LETTER_TOPIC] {
        kafka.create_topic(topic, 2, &[]);
        kafka.permit(Resource::Topic(topic), Operation::Write);
    }
    let setup = kafka
        .as_user(kafka.settings(Setup::new(), TOPIC))
        .set("RECALL_KAFKA__DEAD_LETTER_TOPIC", DEAD_LETTER_TOPIC);
    (kafka, setup)
}

#[test]
fn kafka_has_another_password() {
    let (mut kafka, setup) = strict_kafka();
    let relay = with_kafka(&setup);
    let incident = kafka_called(Incident::begin("wrong-password-kafka", &relay), &kafka);
    kafka.stop();
    kafka.change_password(PASSWORD, "new-secret");
    kafka.resume();
    relay.recalls("a", 2..=6);
    until("the reason in the log", || {
        relay.log().contains("Authentication failed").then_some(())
    });
    let seen = Seen::of(&relay);
    kafka.stop();
    kafka.change_password("new-secret", PASSWORD);
    kafka.resume();
    ends(incident, &setup, relay, "kafka", &seen);
}

#[test]
fn a_right_in_kafka_is_taken_away() {
    let (kafka, setup) = strict_kafka();
    let relay = with_kafka(&setup);
    let incident = kafka_called(Incident::begin("right-taken-away-kafka", &relay), &kafka);
    kafka.revoke(Resource::Topic(TOPIC), Operation::Write);
    relay.recalls("a", 2..=6);
    relay.until_reason("kafka", &format!("user {USER} lacks the right"));
    let seen = Seen::of(&relay);
    kafka.permit(Resource::Topic(TOPIC), Operation::Write);
    ends(incident, &setup, relay, "kafka", &seen);
}

#[test]
fn the_topic_is_deleted_and_may_not_be_created() {
    let kafka = Kafka::start();
    for topic in [TOPIC, DEAD_LETTER_TOPIC] {
        kafka.create_topic(topic, 2, &[]);
    }
    let setup = kafka
        .settings(Setup::new(), TOPIC)
        .set("RECALL_KAFKA__CREATE_TOPICS", "false")
        .set("RECALL_KAFKA__DEAD_LETTER_TOPIC", DEAD_LETTER_TOPIC);
    let relay = with_kafka(&setup);
    let incident = kafka_called(Incident::begin("topic-deleted", &relay), &kafka);
    kafka.delete(TOPIC);
    relay.recalls("a", 2..=6);
    relay.until_reason("kafka", TOPIC);
    let seen = Seen::of(&relay);
    kafka.create_topic(TOPIC, 2, &[]);
    ends(incident, &setup, relay, "kafka", &seen);
}

/// Not even the dead-letter topic takes a callback that cannot be parsed.
#[test]
fn dead_letters_stay_in_the_spool() {
    let (kafka, setup) = strict_kafka();
    kafka.revoke(Resource::Topic(DEAD_LETTER_TOPIC), Operation::Write);
    kafka.permit(Resource::Topic(DEAD_LETTER_TOPIC), Operation::Describe);
    let relay = with_kafka(&setup);
    let incident = kafka_called(Incident::begin("dead-letters", &relay), &kafka);
    assert_eq!(relay.post(&recall_query(), "{").status, 400);
    until("the dead letter", || relay.log_entry("dead_letters_stored"));
    let seen = Seen::of(&relay);
    kafka.permit(Resource::Topic(DEAD_LETTER_TOPIC), Operation::Write);
    let (code, _, told) = setup.run(&["spool", "dead-letters", "retry", "--all"]);
    assert_eq!(code, 0, "{told}");
    until("the end of the retry", || relay.log_entry("retry_finished"));
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// A relay that publishes to RabbitMQ as a user of its own, on this virtual host.
fn rabbitmq_user(rabbitmq: &RabbitMq, user: &str, vhost: &str) -> Setup {
    rabbitmq.ctl(&["add_user", user, "secret"]);
    rabbitmq.ctl(&["set_permissions", user, ".*", ".*", ".*"]);
    let uri = format!("amqp://{user}:secret@127.0.0.1:{}/{vhost}", rabbitmq.port());
    let exchange = format!("{TOPIC}.{user}");
    let setup = rabbitmq.settings(Setup::new(), &exchange);
    setup.set("RECALL_RABBITMQ__URI", &uri)
}

/// A relay that cannot publish to RabbitMQ until `mended`.
fn rabbitmq_incident(
    name: &'static str,
    rabbitmq: &RabbitMq,
    setup: &Setup,
    reason: &str,
    mend: impl FnOnce(),
) {
    let relay = setup.start();
    let incident = rabbitmq_called(Incident::at_start(name), rabbitmq)
        .called(&relay.callbacks.to_string(), "0.0.0.0:8080")
        .called(&relay.admin.to_string(), "127.0.0.1:8081");
    relay.recalls("a", 1..=5);
    until("the reason in the log", || {
        relay.log().contains(reason).then_some(())
    });
    let seen = Seen::of(&relay);
    mend();
    ends(incident, setup, relay, "rabbitmq", &seen);
}

#[test]
fn rabbitmq_has_another_password() {
    let rabbitmq = RabbitMq::shared();
    let setup = rabbitmq_user(&rabbitmq, "relay", "%2f");
    rabbitmq.ctl(&["change_password", "relay", "other"]);
    let reason = "Login was refused";
    rabbitmq_incident("wrong-password-rabbitmq", &rabbitmq, &setup, reason, || {
        rabbitmq.ctl(&["change_password", "relay", "secret"]);
    });
}

#[test]
fn the_vhost_is_missing() {
    let rabbitmq = RabbitMq::shared();
    let setup = rabbitmq_user(&rabbitmq, "guest-of-im", "im");
    rabbitmq_incident("vhost-missing", &rabbitmq, &setup, "im", || {
        rabbitmq.ctl(&["add_vhost", "im"]);
        let rights = [
            "set_permissions",
            "-p",
            "im",
            "guest-of-im",
            ".*",
            ".*",
            ".*",
        ];
        rabbitmq.ctl(&rights);
    });
}

#[test]
fn the_exchange_has_another_type() {
    let rabbitmq = RabbitMq::shared();
    let setup = rabbitmq_user(&rabbitmq, "other-type", "%2f");
    let exchange = format!("{TOPIC}.other-type");
    rabbitmq.with_channel(async |channel| {
        let (kind, none) = (ExchangeKind::Fanout, FieldTable::default());
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let declared = channel.exchange_declare(exchange.as_str().into(), kind, options, none);
        declared.await.unwrap();
    });
    let reason = "inequivalent arg 'type'";
    rabbitmq_incident(
        "exchange-of-another-type",
        &rabbitmq,
        &setup,
        reason,
        || {
            rabbitmq.with_channel(async |channel| {
                let options = lapin::options::ExchangeDeleteOptions::default();
                let deleted = channel.exchange_delete(exchange.as_str().into(), options);
                deleted.await.unwrap();
            });
        },
    );
}
