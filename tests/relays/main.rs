//! Two relays behind a real `HAProxy` with `deploy/haproxy.cfg`, and real brokers: what is not answered when one relay
//! fails, and in which order events arrive.
//!
//! Faults happen in both modes: active/standby with Kafka, active/active with `RabbitMQ`.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod haproxy;
mod load;
mod pair;
#[path = "../rig/mod.rs"]
mod rig;

use std::collections::{BTreeMap, BTreeSet};

use haproxy::Mode;
use load::{CONNECTIONS, Load, Sent};
use pair::Pair;
use recall_relay::vendor::CallbackKind;
use rig::{
    APP, Broker, Recall, assert_kept, assert_none_missing, on_both_brokers, published, read_events,
    read_spool, recall, recall_query,
};
use serde_json::Value;

/// The applications of the relays.
const APPS: [u64; 8] = [
    APP,
    APP + 1,
    APP + 2,
    APP + 3,
    APP + 4,
    APP + 5,
    APP + 6,
    APP + 7,
];

fn mode(broker: &dyn Broker) -> Mode {
    match broker.sink() {
        "kafka" => Mode::ActiveStandby,
        _ => Mode::ActiveActive,
    }
}

/// A setting with which a sink does not reach its broker.
fn unreachable(sink: &str) -> (&'static str, &'static str) {
    match sink {
        "kafka" => ("RECALL_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1"),
        _ => ("RECALL_RABBITMQ__URI", "amqp://127.0.0.1:1"),
    }
}

/// Asserts that no more recalls failed than were under way, and that the broker has all that were answered OK.
///
/// What is sent until the checks fail is answered by the other relay, so the bound does not depend on how long that is.
#[track_caller]
fn assert_survives(pair: &Pair, broker: &dyn Broker, name: &str, sent: &Sent) {
    let (acknowledged, failed) = (&sent.acknowledged, &sent.failed);
    let resent = pair.haproxy.resent(1);
    eprintln!(
        "{name}, {:?}: {} answered OK, {} not, {resent} sent to the other relay",
        mode(broker),
        acknowledged.len(),
        failed.len(),
    );
    assert!(resent > 0, "the fault has struck nothing");
    assert!(failed.len() <= CONNECTIONS, "{failed:?}");
    assert_published(pair, broker, name, acknowledged);
}

#[track_caller]
fn assert_published(pair: &Pair, broker: &dyn Broker, name: &str, acknowledged: &[Recall]) {
    pair.until_drained(broker.sink());
    let events = broker.events(name, acknowledged.len());
    assert_none_missing(acknowledged, &published(&events));
    assert_equal_ids(&events);
}

/// Asserts that all events of a recall have the same id, and those of other recalls another one.
#[track_caller]
fn assert_equal_ids(events: &[Value]) {
    let mut ids = BTreeMap::<_, BTreeSet<_>>::new();
    for (event, recall) in events.iter().zip(published(events)) {
        ids.entry(recall).or_default().insert(event["id"].as_str());
    }
    assert!(ids.values().all(|ids| ids.len() == 1), "{ids:?}");
    let distinct: BTreeSet<_> = ids.values().flatten().collect();
    assert_eq!(distinct.len(), ids.len());
}

fn a_relay_that_is_killed_costs_at_most_what_is_under_way(broker: &mut dyn Broker) {
    let mut pair = Pair::start(mode(broker), broker, "killed");
    let load = Load::start(&pair.haproxy);
    pair.first.kill();
    pair.haproxy.until_up(1, false);
    load.until_more();
    pair.first.start();
    pair.until_up();
    load.until_more();
    let sent = load.stop();
    assert_survives(&pair, broker, "killed", &sent);
}

fn a_full_spool_costs_at_most_what_is_under_way(broker: &mut dyn Broker) {
    let mut pair = Pair::start_with(mode(broker), broker, "full", |setup| {
        // The broker gets all events, but the other sink pins them.
        let other = match broker.sink() {
            "kafka" => "rabbitmq",
            _ => "kafka",
        };
        let (name, value) = unreachable(other);
        setup
            .set(name, value)
            .set("RECALL_SPOOL__MAX_BYTES", "2MiB")
    });
    let load = Load::start(&pair.haproxy);
    pair.haproxy.until_up(1, false);
    load.until_more();
    let sent = load.stop();
    assert_survives(&pair, broker, "full", &sent);
    pair.first.kill();
}

fn a_disk_that_hangs_costs_at_most_what_is_under_way(broker: &mut dyn Broker) {
    let pair = Pair::start(mode(broker), broker, "hung");
    let load = Load::start(&pair.haproxy);
    pair.first.faults.hang_syncs();
    pair.haproxy.until_up(1, false);
    load.until_more();
    pair.first.faults.heal();
    pair.until_up();
    load.until_more();
    let sent = load.stop();
    assert_survives(&pair, broker, "hung", &sent);
}

/// Each relay is stopped in order, and started again.
fn a_rolling_restart_loses_nothing(broker: &mut dyn Broker) {
    let mut pair = Pair::start(mode(broker), broker, "rolling");
    let load = Load::start(&pair.haproxy);
    pair.first.stop();
    pair.haproxy.until_up(1, false);
    load.until_more();
    pair.first.start();
    pair.until_up();
    load.until_more();
    pair.second.stop();
    pair.haproxy.until_up(2, false);
    load.until_more();
    pair.second.start();
    pair.until_up();
    load.until_more();
    let sent = load.stop();
    assert_eq!(sent.failed, []);
    assert_published(&pair, broker, "rolling", &sent.acknowledged);
}

fn a_repeat_at_the_other_relay_has_the_same_id(broker: &mut dyn Broker) {
    let pair = Pair::start(Mode::ActiveActive, broker, "repeated");
    let mut client = pair.haproxy.client();
    for _ in 0..2 {
        let answer = client.post(&recall_query(), &recall("g", 1)).unwrap();
        assert!(answer.is_ok(), "{answer:?}");
    }
    pair.until_drained(broker.sink());
    let spools = [&pair.first, &pair.second].map(|member| read_spool(&member.setup));
    assert_eq!(spools, [(); 2].map(|()| vec![Recall::new("g", 1)]));
    let events = broker.events("repeated", 2);
    assert_eq!(events.len(), 2);
    assert_equal_ids(&events);
}

fn active_standby_keeps_the_order_but_for_a_backlog(broker: &mut dyn Broker) {
    let sink = broker.sink();
    let mut pair = Pair::start(Mode::ActiveStandby, broker, "standby");
    let mut client = pair.haproxy.client();
    let mut post = |numbers: std::ops::RangeInclusive<u64>| {
        for number in numbers {
            let answer = client.post(&recall_query(), &recall("g", number)).unwrap();
            assert!(answer.is_ok(), "{answer:?}");
        }
    };
    // A stop publishes everything.
    post(1..=5);
    pair.first.stop();
    post(6..=10);
    pair.second.relay().until_drained(sink);
    let (name, value) = unreachable(sink);
    pair.first.start_with(name, value);
    pair.until_up();
    post(11..=15);
    pair.first.kill();
    post(16..=20);
    pair.second.relay().until_drained(sink);
    pair.first.start();
    pair.until_drained(sink);
    let found = broker.recalls("standby", 20);
    let expected = (1..=10).chain(16..=20).chain(11..=15);
    let expected: Vec<_> = expected.map(|number| Recall::new("g", number)).collect();
    assert_eq!(found, expected);
}

fn active_active_does_not_keep_the_order(broker: &mut dyn Broker) {
    let sink = broker.sink();
    let mut pair = Pair::start(Mode::ActiveActive, broker, "active");
    let (name, value) = unreachable(sink);
    pair.first.kill();
    pair.first.start_with(name, value);
    pair.until_up();
    let mut client = pair.haproxy.client();
    let sent: Vec<_> = (1..=10)
        .map(|number| {
            let answer = client.post(&recall_query(), &recall("g", number)).unwrap();
            assert!(answer.is_ok(), "{answer:?}");
            Recall::new("g", number)
        })
        .collect();
    pair.second.relay().until_drained(sink);
    pair.first.kill();
    pair.first.start();
    pair.until_drained(sink);
    let found = broker.recalls("active", sent.len());
    assert_none_missing(&sent, &found);
    assert!(!found.is_sorted(), "{found:?}");
}

fn a_split_by_application_keeps_the_order(broker: &mut dyn Broker) {
    let mut pair = Pair::start(Mode::ByApplication, broker, "split");
    let load = Load::start(&pair.haproxy);
    load.until_more();
    let sent = load.stop();
    pair.until_drained(broker.sink());
    let groups = [&pair.first, &pair.second].map(|member| {
        let recalls = published(&read_events(&member.setup));
        recalls.into_iter().map(|recall| recall.group)
    });
    let [first, second] = groups.map(Iterator::collect::<BTreeSet<_>>);
    assert!(
        !first.is_empty() && !second.is_empty(),
        "{first:?} {second:?}"
    );
    assert!(first.is_disjoint(&second), "{first:?} {second:?}");
    let found = broker.recalls("split", sent.acknowledged.len());
    assert_kept(&sent.acknowledged, &found);

    // The other relay takes the applications of a relay that is gone.
    pair.first.kill();
    let mut client = pair.haproxy.client();
    for app in APPS {
        let query = CallbackKind::Group.query(app, None);
        let answer = client.post(&query, &recall("g", app)).unwrap();
        assert!(answer.is_ok(), "{answer:?}");
    }
}

on_both_brokers! {
    a_relay_that_is_killed_costs_at_most_what_is_under_way,
    a_full_spool_costs_at_most_what_is_under_way,
    a_disk_that_hangs_costs_at_most_what_is_under_way,
    a_rolling_restart_loses_nothing,
    a_repeat_at_the_other_relay_has_the_same_id,
    active_standby_keeps_the_order_but_for_a_backlog,
    active_active_does_not_keep_the_order,
    a_split_by_application_keeps_the_order,
}
