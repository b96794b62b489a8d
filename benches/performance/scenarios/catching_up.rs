//! Answers while a backlog is published.

use std::time::Duration;

use super::super::bench::{Bench, Sink};
use super::super::cores::CoreSet;
use super::super::load::Load;
use super::super::round::{Round, SinkWait, measure};
use super::super::server::Server;
use super::super::table::Report;
use super::comparison::Comparison;
use super::warm_up;

pub const NAME: &str = "catching_up";

/// Rounds are this many times longer than elsewhere: in the first second of a new relay, its files and its topic are
/// new, and answers are slower.
const ROUND_FACTOR: u32 = 3;

/// The timeout for a relay to connect to its broker.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

pub fn run(bench: &mut Bench) -> Report {
    let mut comparison = Comparison::new(
        NAME,
        "\"Even\": the sink keeps up with the callbacks. \"Behind\": it has a backlog and catches up during the round \
         (during the whole round, if it is still behind at the end).",
        [("sink is", "sink_is"), ("p99 of even", "p99_of_even")],
        ["even", "behind"],
    );
    for sink in Sink::BROKERS {
        let (even, destination) = bench.relay(sink);
        warm_up(&even, &bench.cores, SinkWait::UntilDrained(sink.name()));
        for connections in bench.options.connection_counts() {
            let load = Load::new(*connections, bench.options.round * ROUND_FACTOR);
            let (mut even_rounds, mut behind_rounds) = (Vec::new(), Vec::new());
            for _ in 0..bench.options.rounds {
                let sink_wait = SinkWait::UntilDrained(sink.name());
                even_rounds.push(measure(&even, &load, &bench.cores, sink_wait));
                destination.clear();
                behind_rounds.push(measure_catching_up(bench, sink, &load));
            }
            comparison.add(sink, *connections, &even_rounds, &behind_rounds);
        }
    }
    comparison.report()
}

/// Measures a round on a new relay with a backlog, and stops the relay after the round.
fn measure_catching_up(bench: &mut Bench, sink: Sink, load: &Load) -> Round {
    let destination = bench.destination(sink, CoreSet::Generator);
    let setup = destination.settings(bench.setup());
    bench.backlogs.copy(bench.options.backlog, &setup);
    let relay = Server::relay(setup, &bench.cores, CoreSet::Server);
    relay.wait_for_sink(sink.name(), CONNECT_TIMEOUT, |it| it.cursor > 0);
    let sink_wait = SinkWait::For(sink.name(), Duration::ZERO);
    warm_up(&relay, &bench.cores, sink_wait);
    let round = measure(&relay, load, &bench.cores, sink_wait);
    drop(relay);
    destination.remove();
    round
}
