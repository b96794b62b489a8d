//! How fast a backlog is published, without callbacks and without pinning, compared with a bare client of the same
//! broker that publishes the same messages.

use std::time::{Duration, Instant};

use nix::unistd::sync;

use super::super::backlog::CONVERSATIONS;
use super::super::bench::{Bench, Sink};
use super::super::cores::CoreSet;
use super::super::options::Form;
use super::super::round::{median, mib};
use super::super::server::{Position, Server};
use super::super::table::{Cell, Report, Table, Target};
use super::super::{bare_producer, bare_publisher};
use super::MAX_MEMORY_MIB;

pub const NAME: &str = "backlog";

/// The maximum time from the start of the process to its first answer.
const MAX_FIRST_ANSWER_SECONDS: f64 = 0.5;

/// The timeout for a backlog to be published.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The first one is the default.
const RETENTIONS: [&str; 2] = ["24h", "0s"];

const COLUMNS: [(&str, &str); 11] = [
    ("sink", "sink"),
    ("retention", "retention"),
    ("backlog", "backlog"),
    ("events measured", "events_measured"),
    ("relay, events/s", "relay_events_per_second"),
    ("bare client, events/s", "bare_events_per_second"),
    ("of bare", "relay_of_bare"),
    ("CPU s per million", "cpu_seconds_per_million"),
    ("bytes written per event", "bytes_written_per_event"),
    ("first answer, s", "first_answer_seconds"),
    ("peak memory, MiB", "peak_memory_mib"),
];

/// The results of a relay that published a backlog once.
pub(super) struct Run {
    /// Events per second after the first confirm.
    pub(super) rate: f64,
    first_answer: f64,
    pub(super) memory: f64,
    pub(super) cpu: f64,
    written: f64,
}

pub fn run(bench: &mut Bench) -> Report {
    let mut report = Report::new(NAME);
    let title = format!(
        "A backlog over {CONVERSATIONS} conversations; every process may use all cores. Forwarded events are kept \
         for a day or purged at once."
    );
    let mut table = Table::new(title, &COLUMNS);
    for (sink, at_least) in [(Sink::Kafka, 0.7), (Sink::RabbitMq, 0.9)] {
        let backlog = bench.options.backlog;
        let events = match sink {
            Sink::RabbitMq => bench.options.slow_sink_events,
            Sink::Stdout | Sink::Kafka => backlog,
        };
        let mut runs: [Vec<Run>; RETENTIONS.len()] = Default::default();
        let mut bare = Vec::new();
        // Warm up the broker.
        if bench.options.form != Form::Short {
            publish(bench, sink, events);
        }
        // The relay and the bare client alternate, so that a change of the machine's speed affects both.
        for _ in 0..bench.options.rounds {
            for (retention, runs) in RETENTIONS.iter().zip(&mut runs) {
                let settings = [("RECALL_SPOOL__RETENTION", *retention)];
                runs.push(catch_up(bench, sink, events, &settings));
            }
            bare.push(publish(bench, sink, events));
        }
        for (retention, runs) in RETENTIONS.iter().zip(&runs) {
            let median_of = |field: fn(&Run) -> f64| median(runs.iter().map(field));
            let ratio = median(runs.iter().zip(&bare).map(|(run, bare)| run.rate / bare));
            let first_answer = median_of(|it| it.first_answer);
            let memory = runs.iter().map(|it| it.memory).fold(0.0, f64::max);
            table.push(vec![
                sink.name().into(),
                (*retention).into(),
                backlog.into(),
                events.into(),
                Cell::Number(median_of(|it| it.rate), 0),
                Cell::Number(median(bare.iter().copied()), 0),
                Cell::Number(ratio, 2),
                Cell::Number(median_of(|it| it.cpu), 2),
                Cell::Number(median_of(|it| it.written), 0),
                Cell::Number(first_answer, 3),
                Cell::Number(memory, 1),
            ]);
            let name = format!("{}, retention {retention}", sink.name());
            // The rate has a target only with the default retention.
            if *retention == RETENTIONS[0] {
                let what = format!("events/s of a bare client: {name}");
                report.targets.push(Target::at_least(what, at_least, ratio));
            }
            report.targets.extend([
                Target::at_most(
                    format!("first answer, s: {name}"),
                    MAX_FIRST_ANSWER_SECONDS,
                    first_answer,
                ),
                Target::at_most(format!("peak memory, MiB: {name}"), MAX_MEMORY_MIB, memory),
            ]);
        }
    }
    report.tables.push(table);
    report
}

/// Starts a relay with these settings on a backlog, and measures how fast its sink confirms `events` events.
pub(super) fn catch_up(
    bench: &mut Bench,
    sink: Sink,
    events: u64,
    settings: &[(&str, &str)],
) -> Run {
    let destination = bench.destination(sink, CoreSet::All);
    let setup = destination.settings(bench.setup());
    let setup = settings
        .iter()
        .fold(setup, |setup, (name, value)| setup.set(name, value));
    bench.backlogs.copy(bench.options.backlog, &setup);
    sync();
    let mut relay = Server::launch(setup, &bench.cores, CoreSet::All);
    let first_answer = relay.wait_for_answer().as_secs_f64();
    let (before, first) = (
        relay.usage(),
        wait_for_position(&relay, sink, |it| it.cursor > 0),
    );
    let last = wait_for_position(&relay, sink, |it| it.lag == 0 || it.cursor >= events);
    let (after, memory) = (relay.usage(), mib(relay.peak_memory()));
    drop(relay);
    destination.remove();
    let confirmed = (last.1.cursor - first.1.cursor) as f64;
    let total = last.1.cursor as f64;
    Run {
        rate: confirmed / (last.0 - first.0).as_secs_f64(),
        first_answer,
        memory,
        cpu: after.cpu.saturating_sub(before.cpu).as_secs_f64() / total * 1e6,
        written: (after.written - before.written) as f64 / total,
    }
}

/// Waits until the sink reaches the wanted position; returns the time and the position.
fn wait_for_position(
    relay: &Server,
    sink: Sink,
    wanted: impl Fn(Position) -> bool,
) -> (Instant, Position) {
    let position = relay.wait_for_sink(sink.name(), TIMEOUT, wanted);
    (Instant::now(), position)
}

/// Publishes the same events with a bare client; returns its rate.
fn publish(bench: &mut Bench, sink: Sink, events: u64) -> f64 {
    let destination = bench.destination(sink, CoreSet::All);
    sync();
    let rate = bench.cores.run_on(CoreSet::All, || match sink {
        Sink::Kafka => bare_producer::publish(destination.kafka(), &destination.name, events),
        Sink::RabbitMq => {
            bare_publisher::publish(destination.rabbitmq(), &destination.name, events)
        }
        Sink::Stdout => panic!("stdout has no bare client"),
    });
    destination.remove();
    rate
}
