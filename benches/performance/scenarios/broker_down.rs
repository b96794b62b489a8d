//! The answer while the broker is away: the vendor must not notice.

use super::super::bench::{Bench, Sink};
use super::super::load::Load;
use super::super::round::{Forwarding, measure};
use super::super::table::Report;
use super::comparison::Comparison;
use super::warm_up;

pub const NAME: &str = "broker_down";

pub fn play(bench: &mut Bench) -> Report {
    let mut comparison = Comparison::new(
        NAME,
        "The broker is up; nobody listens where it should be.",
        [("broker", "broker"), ("p99 of up", "p99_of_up")],
        ["up", "down"],
    );
    for sink in Sink::BROKERS {
        let (up, to) = bench.relay(sink);
        let down = bench.relay_without_broker(sink);
        warm_up(&up, &bench.cores, Forwarding::UntilDrained(sink.name()));
        warm_up(&down, &bench.cores, Forwarding::Ignored);
        for connections in bench.options.beside() {
            let load = Load::new(*connections, bench.options.round);
            let (mut with, mut without) = (Vec::new(), Vec::new());
            for _ in 0..bench.options.rounds {
                let forwarding = Forwarding::UntilDrained(sink.name());
                with.push(measure(&up, &load, &bench.cores, forwarding));
                to.clear();
                without.push(measure(&down, &load, &bench.cores, Forwarding::Ignored));
            }
            comparison.add(sink, *connections, &with, &without);
        }
    }
    comparison.report()
}
