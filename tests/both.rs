//! Both sinks on one relay: neither waits for the other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use rig::{Broker as _, Kafka, RabbitMq, Setup, assert_kept, under_load};

#[test]
fn a_broker_that_is_down_does_not_delay_the_other() {
    let rabbitmq = RabbitMq::start();
    let mut kafka = Kafka::new_stopped();
    let setup = Setup::new()
        .set(
            "RECALL_KAFKA__BOOTSTRAP_SERVERS",
            &kafka.bootstrap_servers(),
        )
        .set("RECALL_RABBITMQ__URI", &rabbitmq.uri());
    let relay = setup.start();
    let acknowledged = under_load(&relay, || {});
    relay.until_drained("rabbitmq");
    relay.until_sink("rabbitmq", "up");
    let kafka_lag = relay.until_sink("kafka", "down")["lag"].as_u64().unwrap();
    assert_eq!(kafka_lag, acknowledged.len() as u64);

    kafka.resume();
    relay.until_drained("kafka");
    relay.until_sink("kafka", "up");
    let from_kafka = kafka.recalls("im.message.recalled", acknowledged.len());
    let from_rabbitmq = rabbitmq.recalls("im.message.recalled", acknowledged.len());
    assert_eq!(assert_kept(&acknowledged, &from_kafka), 0);
    assert_eq!(assert_kept(&acknowledged, &from_rabbitmq), 0);
    relay.stop();
}
