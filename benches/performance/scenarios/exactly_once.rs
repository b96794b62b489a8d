//! The cost of `kafka.exactly_once`: throughput of a backlog, latency from answer to subscriber, and CPU time per
//! event, compared with the relay without it.

use std::thread;
use std::time::{Duration, Instant};

use super::super::bench::{Bench, PARTITIONS, Sink};
use super::super::cores::CoreSet;
use super::super::options::Form;
use super::super::rig::{Connection, recall};
use super::super::round::median;
use super::super::server::Server;
use super::super::subscriber::Subscriber;
use super::super::table::{Cell, Report, Table, Target};
use super::super::wait::wait;
use super::MAX_MEMORY_MIB;
use super::backlog::{Run, catch_up};

pub const NAME: &str = "exactly_once";

const EXACTLY_ONCE_ON: (&str, &str) = ("RECALL_KAFKA__EXACTLY_ONCE", "true");

/// The maximum p99 from the answer until the subscriber sees the event, at low load.
const MAX_P99_MS: f64 = 150.0;

/// Events per transaction while a backlog is published: half a window, on average. The default window gives 5000.
const BATCHES: [u64; 4] = [100, 1000, 5000, 10_000];

const RATES: [u32; 2] = [10, 1000];

/// The timeout for the subscriber to see the last event.
const TIMEOUT: Duration = Duration::from_secs(20);

pub fn run(bench: &mut Bench) -> Report {
    let mut report = Report::new(NAME);
    latencies(bench, &mut report);
    backlogs(bench, &mut report);
    report
}

/// How long after its answer the subscriber sees an event, and the CPU time.
#[derive(Default)]
struct Latencies {
    /// In milliseconds, per event.
    seen: Vec<f64>,
    /// In seconds per million events, per round.
    cpu: Vec<f64>,
}

impl Latencies {
    fn percentile(&mut self, fraction: f64) -> f64 {
        self.seen.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index of a list"
        )]
        let index = (self.seen.len() as f64 * fraction) as usize;
        self.seen[index.min(self.seen.len() - 1)]
    }
}

fn latencies(bench: &mut Bench, report: &mut Report) {
    let mut table = Table::new(
        "The time from an answer until a subscriber sees the event, one callback after the other.",
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
            measure_latencies(bench, rate, &[], &mut without);
            measure_latencies(bench, rate, &[EXACTLY_ONCE_ON], &mut with);
        }
        for (on, latencies) in [("off", &mut without), ("on", &mut with)] {
            let events = latencies.seen.len() as u64;
            let (p50, p99, max) = (
                latencies.percentile(0.5),
                latencies.percentile(0.99),
                latencies.percentile(1.0),
            );
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
            let target = Target::at_most(what, MAX_P99_MS, with.percentile(0.99));
            report.targets.push(target);
        }
    }
    report.tables.push(table);
}

/// Sends callbacks at a steady rate to a new relay, and records when a subscriber sees them.
fn measure_latencies(
    bench: &mut Bench,
    rate: u32,
    settings: &[(&str, &str)],
    latencies: &mut Latencies,
) {
    let destination = bench.destination(Sink::Kafka, CoreSet::Generator);
    let setup = destination.settings(bench.setup());
    let setup = settings
        .iter()
        .fold(setup, |setup, (name, value)| setup.set(name, value));
    let relay = Server::relay(setup, &bench.cores, CoreSet::Server);
    relay.wait_for_sink("kafka", TIMEOUT, |it| it.lag == 0);
    let partitions = i32::try_from(PARTITIONS).expect("the number of partitions exceeds i32");
    let subscriber = Subscriber::start(destination.kafka(), &destination.name, partitions);
    let until_seen = |count: usize| {
        let seen = wait(TIMEOUT, Duration::from_millis(1), || {
            subscriber.count() >= count
        });
        assert!(
            seen,
            "{} of {count} events were seen within {TIMEOUT:?}",
            subscriber.count()
        );
    };
    // The callback that `wait_for_answer` sent has number 1; the measured ones start at 2.
    until_seen(1);
    let seconds = match bench.options.form {
        Form::Short => 1,
        Form::Normal => 2 * bench.options.round.as_secs(),
        Form::Full => 4 * bench.options.round.as_secs(),
    };
    let count = u64::from(rate) * seconds;
    let mut connection = Connection::open(relay.address).expect("cannot connect to the relay");
    let (began, before) = (Instant::now(), relay.usage());
    // Each callback has its own due time, so that a slow answer does not lower the rate.
    let answered: Vec<Instant> = (0..count)
        .map(|number| {
            let due = began
                + Duration::from_secs(1) / rate
                    * u32::try_from(number).expect("the number of callbacks exceeds u32");
            thread::park_timeout(due.saturating_duration_since(Instant::now()));
            let body = recall(&format!("group-{}", number % 100), number + 2);
            let answer = connection.post_recall(&body);
            assert!(
                answer.is_ok_and(|it| it.is_ok()),
                "a callback was not answered OK"
            );
            Instant::now()
        })
        .collect();
    until_seen(answered.len() + 1);
    let cpu = relay.usage().cpu.saturating_sub(before.cpu);
    latencies.cpu.push(cpu.as_secs_f64() / count as f64 * 1e6);
    let seen = subscriber.stop();
    drop(relay);
    destination.remove();
    for (number, answered) in (2..).zip(answered) {
        let after = seen[&number].saturating_duration_since(answered);
        latencies.seen.push(after.as_secs_f64() * 1e3);
    }
}

fn backlogs(bench: &mut Bench, report: &mut Report) {
    let mut table = Table::new(
        "A backlog; every process may use all cores. A transaction holds half a window on average.",
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
        // Small transactions are slow, so they get fewer events.
        let events = if batch < 1000 {
            bench.options.slow_sink_events
        } else {
            bench.options.backlog
        };
        let setting = ("RECALL_KAFKA__WINDOW", &*window.to_string());
        let (mut with, mut without): (Vec<Run>, Vec<Run>) = (Vec::new(), Vec::new());
        for _ in 0..bench.options.rounds {
            without.push(catch_up(bench, Sink::Kafka, events, &[]));
            with.push(catch_up(
                bench,
                Sink::Kafka,
                events,
                &[EXACTLY_ONCE_ON, setting],
            ));
        }
        let median_of = |runs: &[Run], field: fn(&Run) -> f64| median(runs.iter().map(field));
        let ratios = with.iter().zip(&without);
        let ratio = median(ratios.map(|(with, without)| with.rate / without.rate));
        let memory = with.iter().map(|it| it.memory).fold(0.0, f64::max);
        table.push(vec![
            batch.into(),
            window.into(),
            events.into(),
            Cell::Number(median_of(&with, |it| it.rate), 0),
            Cell::Number(median_of(&without, |it| it.rate), 0),
            Cell::Number(ratio, 2),
            Cell::Number(median_of(&with, |it| it.cpu), 1),
            Cell::Number(median_of(&without, |it| it.cpu), 1),
            Cell::Number(memory, 1),
        ]);
        // The target applies up to the default window.
        if batch < 10_000 {
            let what = format!("peak memory, MiB: transactions of {batch}");
            report
                .targets
                .push(Target::at_most(what, MAX_MEMORY_MIB, memory));
        }
    }
    report.tables.push(table);
}
