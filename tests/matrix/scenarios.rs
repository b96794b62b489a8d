//! The scenarios: what breaks, and what each of them may cost.
//!
//! In each: nothing answered OK is missing, and order holds; the numbers here bound the rest.

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
    /// How many copies one fault may cause; none where events are published exactly once.
    pub duplicates: u64,
    /// How long after a fault's end callbacks are answered OK again and the sink has caught up.
    pub recovery: Duration,
    /// Plays it: with load from the beginning to the end.
    pub play: fn(&mut Stage<'_>),
}

const EVERY: &[Sink] = &Sink::ALL;
const KAFKA: &[Sink] = &[Sink::Kafka, Sink::KafkaExactlyOnce];

/// All of them, in the order of the table.
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
