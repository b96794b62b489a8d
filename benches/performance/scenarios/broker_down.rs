//! Answers while the broker is down: they must not become noticeably slower.

use super::super::bench::{Bench, Sink};
use super::super::load::Load;
use super::super::round::{SinkWait, measure};
use super::super::table::Report;
use super::comparison::Comparison;
use super::warm_up;

pub const NAME: &str = "broker_down";

pub fn run(bench: &mut Bench) -> Report {
    let mut comparison = Comparison::new(
        NAME,
        "\"Down\" means that nothing listens at the broker's address.",
        [("broker", "broker"), ("p99 of up", "p99_of_up")],
        ["up", "down"],
    );
    for sink in Sink::BROKERS {
        let (up, destination) = bench.relay(sink);
        let down = bench.relay_without_broker(sink);
        warm_up(&up, &bench.cores, SinkWait::UntilDrained(sink.name()));
        warm_up(&down, &bench.cores, SinkWait::Ignored);
        for connections in bench.options.connection_counts() {
            let load = Load::new(*connections, bench.options.round);
            let (mut up_rounds, mut down_rounds) = (Vec::new(), Vec::new());
            for _ in 0..bench.options.rounds {
                let sink_wait = SinkWait::UntilDrained(sink.name());
                up_rounds.push(measure(&up, &load, &bench.cores, sink_wait));
                destination.clear();
                down_rounds.push(measure(&down, &load, &bench.cores, SinkWait::Ignored));
            }
            comparison.add(sink, *connections, &up_rounds, &down_rounds);
        }
    }
    comparison.report()
}
