//! The scenarios: each injects a fault and bounds its duplicates and its recovery.
//!
//! In every scenario, nothing that was answered OK may be missing or out of order, except what is lost with a machine
//! (`lost_machines`).

mod broker;
mod deletion;
mod disk;
mod machine;
mod network;
mod refusal;
mod relay;

use std::time::Duration;

use super::broker::Sink;
use super::stage::Stage;

#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    pub sinks: &'static [Sink],
    /// The maximum number of duplicates per fault. A sink that publishes exactly once may cause none.
    pub duplicates: u64,
    /// The maximum time from the end of a fault until callbacks are answered OK and, in the long form, until the sink has
    /// caught up.
    pub recovery: Duration,
    /// Starts the relay and the load, and injects the faults.
    pub run: fn(&mut Stage<'_>),
}

const EVERY: &[Sink] = &Sink::ALL;
const KAFKA: &[Sink] = &[Sink::Kafka, Sink::KafkaExactlyOnce];

/// The scenarios on a cluster of three nodes. It takes long to start, so they have no short form.
pub fn on_clusters() -> Vec<Scenario> {
    machine::ON_CLUSTERS.into()
}

/// All scenarios on a single node, in the order of the table.
pub fn all() -> Vec<Scenario> {
    relay::ALL
        .into_iter()
        .chain(machine::ALL)
        .chain(disk::ALL)
        .chain(broker::ALL)
        .chain(network::ALL)
        .chain(refusal::ALL)
        .chain(deletion::ALL)
        .collect()
}
