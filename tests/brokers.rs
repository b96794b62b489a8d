//! The promises that both sinks keep, tested on a real Kafka and a real RabbitMQ.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod rig;

use std::time::{Duration, Instant};

use rig::{
    Broker, Setup, assert_kept, kill_repeatedly, large_recall, on_both_brokers, read_dead_letters,
    recall_query, under_load,
};

on_both_brokers! {
    every_event_arrives_once_and_in_order,
    restarting_the_broker_loses_nothing,
    killing_the_broker_loses_nothing,
    events_wait_for_a_broker_absent_at_the_start,
    unpublished_events_are_published_after_a_restart,
    killing_the_relay_loses_no_acknowledged_callback,
    a_deleted_topic_or_queue_is_recreated_soon,
    a_callback_that_cannot_be_parsed_becomes_a_dead_letter,
    a_too_large_event_stays_in_the_spool_others_are_published,
    denied_dead_letters_do_not_stop_the_events,
}

fn every_event_arrives_once_and_in_order(broker: &mut impl Broker) {
    let relay = broker.settings(Setup::new(), "once").start();
    let mut sent = Vec::new();
    for number in 1..=60 {
        for group in ["a", "b", "@TGS#c d"] {
            sent.extend(relay.recalls(group, number..=number));
        }
    }
    relay.until_drained(broker.sink());
    let found = broker.recalls("once", sent.len());
    assert_eq!(found.len(), sent.len());
    assert_eq!(assert_kept(&sent, &found), 0);
    relay.stop();
}

fn restarting_the_broker_loses_nothing(broker: &mut impl Broker) {
    let sink = broker.sink();
    let relay = broker.settings(Setup::new(), "stopped").start();
    relay.until_sink(sink, "up");
    let acknowledged = under_load(&relay, || {
        broker.stop();
        relay.until_sink(sink, "down");
        assert_eq!(relay.admin("/readyz").status, 200);
        broker.resume();
    });
    relay.until_drained(sink);
    relay.until_sink(sink, "up");
    let repeated = assert_kept(
        &acknowledged,
        &broker.recalls("stopped", acknowledged.len()),
    );
    // When the broker returns, librdkafka may forget all brokers; a new producer then repeats what was in flight.
    let replaced = relay.log_entry("producer_replaced").is_some();
    assert!(
        repeated == 0 || replaced || !broker.is_idempotent(),
        "{repeated} repeated: {}",
        relay.log()
    );
    assert_eq!(relay.down_entries().len(), 1, "{}", relay.log());
    relay.stop();
}

fn killing_the_broker_loses_nothing(broker: &mut impl Broker) {
    let relay = broker.settings(Setup::new(), "killed").start();
    relay.until_sink(broker.sink(), "up");
    let acknowledged = under_load(&relay, || {
        broker.kill();
        broker.resume();
    });
    relay.until_drained(broker.sink());
    assert_kept(&acknowledged, &broker.recalls("killed", acknowledged.len()));
    relay.stop();
}

/// Callbacks are answered OK in the meantime; `benches/performance` measures how fast.
fn events_wait_for_a_broker_absent_at_the_start(broker: &mut impl Broker) {
    let sink = broker.sink();
    broker.stop();
    let relay = broker.settings(Setup::new(), "absent").start();
    relay.until_sink(sink, "down");
    let mut acknowledged = under_load(&relay, || {});
    acknowledged.extend(relay.recalls("one by one", 1..=100));
    assert_eq!(relay.down_entries().len(), 1, "{}", relay.log());
    assert!(relay.log_entries("sink_up").is_empty());
    broker.resume();
    relay.until_drained(sink);
    relay.until_sink(sink, "up");
    acknowledged.extend(relay.recalls("one by one", 101..=200));
    relay.until_drained(sink);
    let found = broker.recalls("absent", acknowledged.len());
    assert_eq!(assert_kept(&acknowledged, &found), 0);
    relay.stop();
}

fn unpublished_events_are_published_after_a_restart(broker: &mut impl Broker) {
    let setup = broker.settings(Setup::new(), "left");
    let setup = setup.set("RECALL_DRAIN_TIMEOUT", "1s");
    broker.stop();
    let relay = setup.start();
    let acknowledged = under_load(&relay, || {});
    relay.stop();
    broker.resume();
    let relay = setup.start();
    relay.until_drained(broker.sink());
    let found = broker.recalls("left", acknowledged.len());
    assert_eq!(assert_kept(&acknowledged, &found), 0);
    relay.stop();
}

fn killing_the_relay_loses_no_acknowledged_callback(broker: &mut impl Broker) {
    let setup = broker.settings(Setup::new(), "relay-killed");
    let acknowledged = kill_repeatedly(&setup, broker.sink(), 4);
    let found = broker.recalls("relay-killed", acknowledged.len());
    let repeated = assert_kept(&acknowledged, &found);
    println!(
        "{} acknowledged, {repeated} of them published again",
        acknowledged.len()
    );
}

/// Regression: the relay created a deleted topic only after half a minute, and declared a deleted queue only in its
/// next session; until then the broker returned every event.
fn a_deleted_topic_or_queue_is_recreated_soon(broker: &mut impl Broker) {
    let relay = broker.settings(Setup::new(), "deleted").start();
    relay.recalls("a", 1..=1);
    relay.until_drained(broker.sink());
    broker.delete("deleted");
    let began = Instant::now();
    let sent = relay.recalls("a", 2..=4);
    relay.until_drained(broker.sink());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(broker.recalls("deleted", sent.len()), sent);
    relay.until_sink(broker.sink(), "up");
    relay.stop();
}

fn a_callback_that_cannot_be_parsed_becomes_a_dead_letter(broker: &mut impl Broker) {
    let relay = broker.settings(Setup::new(), "rejected").start();
    assert_eq!(relay.post(&recall_query(), "{").status, 400);
    let sent = relay.recalls("a", 1..=1);
    relay.until_drained(broker.sink());
    let dead = broker.dead_letters("rejected", 1);
    assert_eq!(dead.len(), 1);
    let kind = dead[0].kind.as_deref();
    assert_eq!(kind, Some("com.tencent.im.callback.rejected"));
    assert_eq!(dead[0].reason, None);
    assert_eq!(broker.recalls("rejected", 1), sent);
    relay.stop();
}

/// The broker's limit applies to dead letters, too. With a backlog of many conversations, the large event is
/// published in one batch with many others.
fn a_too_large_event_stays_in_the_spool_others_are_published<B: Broker>(_: &mut B) {
    let mut broker = B::start_with_limit(4000);
    let setup = broker.settings(Setup::new(), "too-large");
    let relay = setup.start();
    relay.until_sink(broker.sink(), "up");
    broker.stop();
    let mut sent = Vec::new();
    for number in 1..=600 {
        let group = format!("group-{}", number % 300);
        sent.extend(relay.recalls(&group, number..=number));
        if number == 200 {
            let large = relay.post(&recall_query(), large_recall(&group, 20_000));
            assert!(large.is_ok(), "{large:?}");
        }
    }
    broker.resume();
    relay.until_drained(broker.sink());
    assert_kept(&sent, &broker.recalls("too-large", sent.len()));
    assert_eq!(relay.refused_events(broker.sink()), 1);
    relay.stop();
    let kept = read_dead_letters(&setup);
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(kept[0].reason, "too_large");
    assert!(kept[0].bytes > 4000, "{kept:?}");
}

fn denied_dead_letters_do_not_stop_the_events(broker: &mut impl Broker) {
    let (setup, reason, detail) = broker.settings_without_dead_letters(Setup::new(), "limited");
    let relay = setup.start();
    relay.until_sink(broker.sink(), "up");
    let mut sent = relay.recalls("a", 1..=10);
    assert_eq!(relay.post(&recall_query(), "{").status, 400);
    sent.extend(relay.recalls("a", 11..=20));
    relay.until_drained(broker.sink());
    assert_kept(&sent, &broker.recalls("limited", sent.len()));
    let refused = relay.refused_events(broker.sink());
    assert_eq!(refused, 1, "{}", relay.log());
    relay.stop();
    let kept = read_dead_letters(&setup);
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(kept[0].reason, reason);
    assert!(kept[0].detail.contains(detail), "{kept:?}");
}
