//! The scenarios: each injects a fault and bounds its duplicates and its recovery.
//!
//! In every scenario, nothing that was answered OK may be missing or out of order.

mod broker;
mod deletion;
mod disk;
mod network;
mod refusal;
mod relay;

use std::time::Duration;

use super::broker::Sink;
use super::stage::Stage;

pub struct Scenario {
    pub name: &'static str,
    pub sinks: &'static [Sink],
    /// The maximum number of duplicates per fault. A sink that publishes exactly once may cause none.
    pub duplicates: u64,
    /// The maximum time from the end of a fault until callbacks are answered OK and the sink has caught up.
    pub recovery: Duration,
    /// Starts the relay and the load, and injects the faults.
    pub run: fn(&mut Stage<'_>),
}

const EVERY: &[Sink] = &Sink::ALL;
const KAFKA: &[Sink] = &[Sink::Kafka, Sink::KafkaExactlyOnce];

/// All scenarios, in the order of the table.
pub fn all() -> Vec<Scenario> {
    relay::ALL
        .into_iter()
        .chain(disk::ALL)
        .chain(broker::ALL)
        .chain(network::ALL)
        .chain(refusal::ALL)
        .chain(deletion::ALL)
        .collect()
}
