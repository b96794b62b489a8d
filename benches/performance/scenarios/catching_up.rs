//! The answer while a backlog goes out.

use std::time::Duration;

use super::super::bench::{Bench, Sink};
use super::super::cores::Place;
use super::super::load::Load;
use super::super::round::{Forwarding, Round, measure};
use super::super::server::Server;
use super::super::table::Report;
use super::comparison::Comparison;
use super::warm_up;

pub const NAME: &str = "catching_up";

/// How many times as long a round is as those of others: in its first second the files and the topic of a relay that
/// has just started are new, and answers wait longer.
const LONGER: u32 = 3;

/// How long a relay may take to find its broker.
const CONNECTS: Duration = Duration::from_secs(60);

pub fn play(bench: &mut Bench) -> Report {
    let mut comparison = Comparison::new(
        NAME,
        "The sink is even with the callbacks; it is behind by a backlog and catches up meanwhile \
         (all the while, where it is still behind at the end).",
        [("sink is", "sink_is"), ("p99 of even", "p99_of_even")],
        ["even", "behind"],
    );
    for sink in Sink::BROKERS {
        let (even, to) = bench.relay(sink);
        warm_up(&even, &bench.cores, Forwarding::UntilDrained(sink.name()));
        for connections in bench.options.beside() {
            let load = Load::new(*connections, bench.options.round * LONGER);
            let (mut with, mut without) = (Vec::new(), Vec::new());
            for _ in 0..bench.options.rounds {
                let forwarding = Forwarding::UntilDrained(sink.name());
                without.push(measure(&even, &load, &bench.cores, forwarding));
                to.clear();
                with.push(behind(bench, sink, &load));
            }
            comparison.add(sink, *connections, &without, &with);
        }
    }
    comparison.report()
}

/// A round on a relay that is about to send a backlog, and ends with the round.
fn behind(bench: &mut Bench, sink: Sink, load: &Load) -> Round {
    let to = bench.destination(sink, Place::Generator);
    let setup = to.settings(bench.setup());
    bench.backlogs.copy(bench.options.backlog, &setup);
    let relay = Server::relay(setup, &bench.cores, Place::Server);
    relay.until_sink(sink.name(), CONNECTS, |it| it.cursor > 0);
    let forwarding = Forwarding::For(sink.name(), Duration::ZERO);
    warm_up(&relay, &bench.cores, forwarding);
    let round = measure(&relay, load, &bench.cores, forwarding);
    drop(relay);
    to.remove();
    round
}
