//! Nothing is down, but something is slow.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::brokers::{TOPIC, kafka_called, rabbitmq_called};
use super::page::{Incident, Seen};
use super::rig::{Broker as _, Faults, Kafka, NetworkMode, Proxy, RabbitMq, Setup, until};

/// Confirms are slower than callbacks arrive.
#[test]
fn the_way_to_the_broker_is_slow() {
    // Not more: the sink counts as down if one batch takes longer than ten seconds.
    const LAG: u64 = 100;

    let kafka = Kafka::start();
    let proxied = kafka.proxied();
    let proxy = Proxy::start(proxied.advertised, proxied.listens);
    let setup = kafka.settings(Setup::new(), TOPIC).set(
        "RECALL_KAFKA__BOOTSTRAP_SERVERS",
        &format!("127.0.0.1:{}", proxy.port()),
    );
    // The alert fires after five minutes.
    let faults = Faults::new();
    let relay = setup.with_faults(&faults).start();
    relay.until_sink("kafka", "up");
    relay.recalls("a", 1..=1);
    relay.until_drained("kafka");
    let incident = kafka_called(Incident::begin("events-late", &relay), &kafka);
    proxy.set(NetworkMode::Slow {
        latency: Duration::from_secs(1),
        bytes_per_second: 30_000,
    });
    let mut last = 1;
    let mut sink = || {
        let status = relay.admin("/status");
        let status: Value = serde_json::from_slice(&status.body).unwrap();
        let sink = status["sinks"][0].clone();
        assert_eq!(sink["state"], "up", "{sink}");
        if sink["lag"].as_u64().unwrap() < LAG {
            relay.recalls("a", last + 1..=last + 20);
            last += 20;
        }
        sink
    };
    until("events to wait", || {
        (sink()["lag"].as_u64().unwrap() >= LAG).then_some(())
    });
    faults.set_clock_forward(Duration::from_secs(600));
    until("the oldest event to be late", || {
        let age = sink()["oldest_unconfirmed_seconds"].as_f64();
        age.filter(|age| *age > 300.0)
    });
    let names = [
        "recall_sink_lag_events",
        "recall_sink_oldest_unconfirmed_seconds",
    ];
    let incident = incident.also_shows_metrics(&relay, &names);
    let seen = Seen::with_figures(&relay, "sinks");
    proxy.set(NetworkMode::Open);
    relay.until_drained("kafka");
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    relay.stop();
}

/// The disk takes long for a sync, but the vendor still gets its answer in time.
#[test]
fn commits_are_slow() {
    let faults = Faults::new();
    let setup = Setup::new().with_faults(&faults);
    let relay = setup.start();
    relay.recalls("a", 1..=1);
    relay.until_drained("stdout");
    let incident = Incident::begin("commits-slow", &relay);
    faults.slow_syncs(Duration::from_millis(550));
    let mut number = 1;
    let syncs = || faults.calls().syncs;
    until("an answer that took more than a second", || {
        number += 1;
        let before = syncs();
        thread::scope(|scope| {
            scope.spawn(|| relay.recall("a", number));
            until("a commit", || (syncs() > before).then_some(()));
            // It waits for that commit, then for its own.
            relay.recall("b", number);
        });
        let status = relay.admin("/status");
        let status: Value = serde_json::from_slice(&status.body).unwrap();
        let slowest = status["history"]["answer_p99_seconds"]
            .as_array()?
            .last()?
            .as_f64()?;
        (slowest > 1.0).then_some(())
    });
    let seen = Seen::with_figures(&relay, "latency");
    incident.compare_with_page(&setup, &relay.log(), Some(&seen));
    faults.heal();
    relay.stop();
}

/// The broker is frozen: the relay does not notice that before heartbeats are missing.
#[test]
fn answers_do_not_wait_for_the_broker() {
    let rabbitmq = RabbitMq::start();
    let setup = rabbitmq
        .settings(Setup::new(), TOPIC)
        .set("RECALL_ANSWER_AFTER", "broker");
    let relay = setup.start();
    relay.until_sink("rabbitmq", "up");
    relay.recalls("a", 1..=1);
    relay.until_drained("rabbitmq");
    let incident = rabbitmq_called(Incident::begin("answers-after-disk", &relay), &rabbitmq);
    rabbitmq.freeze();
    relay.recalls("a", 2..=20);
    until("the line", || relay.log_entry("answers_after_disk"));
    let seen = Seen::of(&relay);
    let names = ["recall_answers_total", "recall_at_risk_events"];
    let incident = incident.also_shows_metrics(&relay, &names);
    let log = relay.log();
    rabbitmq.thaw();
    relay.until_drained("rabbitmq");
    let mut number = 0;
    until("answers to wait again", || {
        number += 1;
        relay.recall("b", number);
        relay.log_entry("answers_wait_for_broker")
    });
    incident.compare_with_page(&setup, &log, Some(&seen));
    relay.stop();
}
