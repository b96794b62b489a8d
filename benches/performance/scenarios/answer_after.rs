//! What `answer_after = "broker"` costs: answers that also wait for the broker's confirm beside answers that wait for
//! the disk alone.

pub mod dying;
pub mod working;

use std::thread;

use super::super::bench::Sink;
use super::super::columns::{ROUND_COLUMNS, cells};
use super::super::cores::{CoreSet, Cores};
use super::super::load::Load;
use super::super::rig::Setup;
use super::super::round::{Round, SinkWait, measure, median, medians, ratio};
use super::super::server::Server;
use super::super::table::Cell;

/// `answer_deadline`, in milliseconds.
const DEADLINE_MS: u32 = 500;

/// A relay and its rounds.
struct Relay {
    name: &'static str,
    sink: Sink,
    server: Server,
    rounds: Vec<Round>,
    /// For each round, the share of answers that were given after the broker's confirm.
    confirmed: Vec<f64>,
}

impl Relay {
    /// Starts a relay. `answer_after` is the setting and, after a space, what else distinguishes it from others.
    fn start(name: &'static str, sink: Sink, setup: Setup, cores: &Cores) -> Self {
        let answer_after = name.split(' ').next().unwrap_or(name);
        let setup = setup
            .set("RECALL_ANSWER_AFTER", answer_after)
            .set("RECALL_ANSWER_DEADLINE", &format!("{DEADLINE_MS}ms"));
        Self {
            name,
            sink,
            server: Server::relay(setup, cores, CoreSet::Server),
            rounds: Vec::new(),
            confirmed: Vec::new(),
        }
    }

    const fn sink_wait(&self) -> SinkWait<'static> {
        SinkWait::UntilDrained(self.sink.name())
    }

    /// Measures a round; `meanwhile` runs on another thread.
    fn measure(&mut self, load: &Load, cores: &Cores, meanwhile: impl FnOnce(&Server) + Send) {
        let server = &self.server;
        let answers = || ["disk", "broker"].map(|after| server.answers_after(after));
        let before = answers();
        let round = thread::scope(|scope| {
            scope.spawn(|| meanwhile(server));
            measure(server, load, cores, self.sink_wait())
        });
        let after = answers();
        let [disk, broker] = [0, 1].map(|it| (after[it] - before[it]) as f64);
        self.rounds.push(round);
        self.confirmed.push(broker / (disk + broker));
    }

    /// The cells of all columns but the first of each table.
    fn cells(&self, reference: &[Round]) -> Vec<Cell> {
        let of_disk =
            |field: fn(&Round) -> f64| Cell::Number(ratio(&self.rounds, reference, field), 2);
        let confirmed = median(self.confirmed.iter().copied());
        let own = [
            self.name.into(),
            of_disk(|it| it.answers),
            of_disk(|it| it.p99),
            of_disk(|it| it.cpu),
            Cell::Number(confirmed, 4),
        ];
        own.into_iter()
            .chain(cells(&medians(&self.rounds)))
            .collect()
    }
}

/// The columns of [`Relay::cells`].
fn columns() -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = [
        ("answer after", "answer_after"),
        ("answers of disk", "answers_of_disk"),
        ("p99 of disk", "p99_of_disk"),
        ("CPU of disk", "cpu_of_disk"),
        ("after the broker", "confirmed_share"),
    ];
    own.into_iter().chain(ROUND_COLUMNS)
}
