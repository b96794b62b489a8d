//! What `kafka.exactly_once` costs: how fast a backlog goes out, how long after its answer an event is seen, and the
//! CPU time of an event; next to the relay without it.

use std::thread;
use std::time::{Duration, Instant};

use super::super::bench::{Bench, PARTITIONS, Sink};
use super::super::cores::Place;
use super::super::options::Form;
use super::super::rig::{Connection, recall};
use super::super::round::median;
use super::super::server::Server;
use super::super::subscriber::Subscriber;
use super::super::table::{Cell, Report, Table, Target};
use super::super::wait::wait;
use super::MEMORY_MIB;
use super::backlog::{Run, catch_up};

pub const NAME: &str = "exactly_once";

const ON: (&str, &str) = ("RECALL_KAFKA__EXACTLY_ONCE", "true");

/// Milliseconds from the answer until the event is seen, at a quiet time: the 99th percentile.
const SEEN_WITHIN: f64 = 150.0;

/// Events of a transaction while a backlog goes out: half a window, on average. 5000 is what the built-in window
/// comes to.
const BATCHES: [u64; 4] = [100, 1000, 5000, 10_000];

const RATES: [u32; 2] = [10, 1000];

/// How long the last event may take to be seen.
const TIMEOUT: Duration = Duration::from_secs(20);

pub fn play(bench: &mut Bench) -> Report {
    let mut report = Report::new(NAME);
    latencies(bench, &mut report);
    backlogs(bench, &mut report);
    report
}

/// When events are seen.
#[derive(Default)]
struct Latencies {
    /// Milliseconds after their answer.
    seen: Vec<f64>,
    cpu: Vec<f64>,
}

impl Latencies {
    fn at(&mut self, part: f64) -> f64 {
        self.seen.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in a list"
        )]
        let place = (self.seen.len() as f64 * part) as usize;
        self.seen[place.min(self.seen.len() - 1)]
    }
}

fn latencies(bench: &mut Bench, report: &mut Report) {
    let mut table = Table::new(
        "From an answer until a subscriber sees the event, one callback after the other.",
        &[
            ("callbacks/s", "callbacks_per_second"),
            ("exactly once", "exactly_once"),
            ("events", "events"),
            ("p50, ms", "p50_ms"),
            ("p99, ms", "p99_ms"),
            ("max, ms", "max_ms"),
            ("CPU s per million", "cpu_seconds_per_million"),
        ],
    );
    for rate in RATES {
        let (mut with, mut without) = (Latencies::default(), Latencies::default());
        for _ in 0..bench.options.rounds {
            watch(bench, rate, &[], &mut without);
            watch(bench, rate, &[ON], &mut with);
        }
        for (on, latencies) in [("off", &mut without), ("on", &mut with)] {
            let events = latencies.seen.len() as u64;
            let (p50, p99, max) = (latencies.at(0.5), latencies.at(0.99), latencies.at(1.0));
            table.push(vec![
                rate.into(),
                on.into(),
                events.into(),
                Cell::Number(p50, 2),
                Cell::Number(p99, 2),
                Cell::Number(max, 1),
                Cell::Number(median(latencies.cpu.iter().copied()), 0),
            ]);
        }
        if rate == RATES[0] {
            let what = "p99 from answer to event at a quiet time, ms";
            let target = Target::at_most(what, SEEN_WITHIN, with.at(0.99));
            report.targets.push(target);
        }
    }
    report.tables.push(table);
}

/// Sends callbacks at a steady rate to a relay of their own, and notes when a subscriber sees them.
fn watch(bench: &mut Bench, rate: u32, settings: &[(&str, &str)], latencies: &mut Latencies) {
    let to = bench.destination(Sink::Kafka, Place::Generator);
    let setup = to.settings(bench.setup());
    let setup = settings
        .iter()
        .fold(setup, |setup, (name, value)| setup.set(name, value));
    let relay = Server::relay(setup, &bench.cores, Place::Server);
    relay.until_sink("kafka", TIMEOUT, |it| it.lag == 0);
    let partitions = i32::try_from(PARTITIONS).expect("a number of partitions");
    let subscriber = Subscriber::start(to.kafka(), &to.name, partitions);
    let until_seen = |count: usize| {
        let seen = wait(TIMEOUT, Duration::from_millis(1), || {
            subscriber.count() >= count
        });
        assert!(seen, "{} of {count} events are seen", subscriber.count());
    };
    // The one by which the relay was found to answer.
    until_seen(1);
    let seconds = match bench.options.form {
        Form::Short => 1,
        Form::Normal => 2 * bench.options.round.as_secs(),
        Form::Full => 4 * bench.options.round.as_secs(),
    };
    let count = u64::from(rate) * seconds;
    let mut connection = Connection::open(relay.address).expect("a connection");
    let (began, before) = (Instant::now(), relay.usage());
    let answered: Vec<Instant> = (0..count)
        .map(|number| {
            let due = began + Duration::from_secs(1) / rate * u32::try_from(number).expect("few");
            thread::park_timeout(due.saturating_duration_since(Instant::now()));
            let body = recall(&format!("group-{}", number % 100), number + 2);
            let answer = connection.post_recall(&body);
            assert!(answer.is_ok_and(|it| it.is_ok()), "a callback answered OK");
            Instant::now()
        })
        .collect();
    until_seen(answered.len() + 1);
    let cpu = relay.usage().cpu.saturating_sub(before.cpu);
    latencies.cpu.push(cpu.as_secs_f64() / count as f64 * 1e6);
    let seen = subscriber.stop();
    drop(relay);
    to.remove();
    for (number, answered) in (2..).zip(answered) {
        let after = seen[&number].saturating_duration_since(answered);
        latencies.seen.push(after.as_secs_f64() * 1e3);
    }
}

fn backlogs(bench: &mut Bench, report: &mut Report) {
    let mut table = Table::new(
        "A backlog, all cores for everybody; a transaction takes half a window on average.",
        &[
            ("events of a transaction", "batch"),
            ("kafka.window", "window"),
            ("events measured", "events_measured"),
            ("exactly once, events/s", "events_per_second"),
            ("at least once, events/s", "events_per_second_without"),
            ("of at least once", "of_at_least_once"),
            ("CPU s per million", "cpu_seconds_per_million"),
            ("without", "cpu_seconds_per_million_without"),
            ("peak memory, MiB", "peak_memory_mib"),
        ],
    );
    for batch in BATCHES {
        let window = 2 * batch;
        let events = if batch < 1000 {
            bench.options.confirmed
        } else {
            bench.options.backlog
        };
        let setting = ("RECALL_KAFKA__WINDOW", &*window.to_string());
        let (mut with, mut without): (Vec<Run>, Vec<Run>) = (Vec::new(), Vec::new());
        for _ in 0..bench.options.rounds {
            without.push(catch_up(bench, Sink::Kafka, events, &[]));
            with.push(catch_up(bench, Sink::Kafka, events, &[ON, setting]));
        }
        let of = |runs: &[Run], figure: fn(&Run) -> f64| median(runs.iter().map(figure));
        let ratios = with.iter().zip(&without);
        let ratio = median(ratios.map(|(with, without)| with.rate / without.rate));
        let memory = with.iter().map(|it| it.memory).fold(0.0, f64::max);
        table.push(vec![
            batch.into(),
            window.into(),
            events.into(),
            Cell::Number(of(&with, |it| it.rate), 0),
            Cell::Number(of(&without, |it| it.rate), 0),
            Cell::Number(ratio, 2),
            Cell::Number(of(&with, |it| it.cpu), 1),
            Cell::Number(of(&without, |it| it.cpu), 1),
            Cell::Number(memory, 1),
        ]);
        if batch < 10_000 {
            let what = format!("peak memory, MiB: transactions of {batch}");
            report
                .targets
                .push(Target::at_most(what, MEMORY_MIB, memory));
        }
    }
    report.tables.push(table);
}
