//! How fast a backlog goes out, without callbacks meanwhile and not pinned: next to a bare client of the same
//! broker that publishes the same messages.

use std::time::{Duration, Instant};

use nix::unistd::sync;

use super::super::backlog::CONVERSATIONS;
use super::super::bench::{Bench, Sink};
use super::super::cores::Place;
use super::super::options::Form;
use super::super::round::{median, mib};
use super::super::server::{Position, Server};
use super::super::table::{Cell, Report, Table, Target};
use super::super::{bare_producer, bare_publisher};
use super::MEMORY_MIB;

pub const NAME: &str = "backlog";

/// Seconds from the start of the process to its first answer.
const FIRST_ANSWER: f64 = 0.5;

/// How long a backlog may take.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The first is built in.
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

/// A relay that caught up once.
pub(super) struct Run {
    /// Events in a second, from the first confirm on.
    pub(super) rate: f64,
    first_answer: f64,
    pub(super) memory: f64,
    pub(super) cpu: f64,
    written: f64,
}

pub fn play(bench: &mut Bench) -> Report {
    let mut report = Report::new(NAME);
    let title = format!(
        "A backlog over {CONVERSATIONS} conversations, all cores for everybody; what was forwarded is kept for a day, \
         as is built in, or deleted at once."
    );
    let mut table = Table::new(title, &COLUMNS);
    for (sink, at_least) in [(Sink::Kafka, 0.7), (Sink::RabbitMq, 0.9)] {
        let backlog = bench.options.backlog;
        let events = match sink {
            Sink::RabbitMq => bench.options.confirmed,
            Sink::Stdout | Sink::Kafka => backlog,
        };
        let mut runs: [Vec<Run>; RETENTIONS.len()] = Default::default();
        let mut bare = Vec::new();
        // To warm the broker up.
        if bench.options.form != Form::Short {
            publish(bench, sink, events);
        }
        for _ in 0..bench.options.rounds {
            for (retention, runs) in RETENTIONS.iter().zip(&mut runs) {
                let settings = [("RECALL_SPOOL__RETENTION", *retention)];
                runs.push(catch_up(bench, sink, events, &settings));
            }
            bare.push(publish(bench, sink, events));
        }
        for (retention, runs) in RETENTIONS.iter().zip(&runs) {
            let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure));
            let ratio = median(runs.iter().zip(&bare).map(|(run, bare)| run.rate / bare));
            let first_answer = of(|it| it.first_answer);
            let memory = runs.iter().map(|it| it.memory).fold(0.0, f64::max);
            table.push(vec![
                sink.name().into(),
                (*retention).into(),
                backlog.into(),
                events.into(),
                Cell::Number(of(|it| it.rate), 0),
                Cell::Number(median(bare.iter().copied()), 0),
                Cell::Number(ratio, 2),
                Cell::Number(of(|it| it.cpu), 2),
                Cell::Number(of(|it| it.written), 0),
                Cell::Number(first_answer, 3),
                Cell::Number(memory, 1),
            ]);
            let name = format!("{}, retention {retention}", sink.name());
            if *retention == RETENTIONS[0] {
                let what = format!("events/s of a bare client: {name}");
                report.targets.push(Target::at_least(what, at_least, ratio));
            }
            report.targets.extend([
                Target::at_most(
                    format!("first answer, s: {name}"),
                    FIRST_ANSWER,
                    first_answer,
                ),
                Target::at_most(format!("peak memory, MiB: {name}"), MEMORY_MIB, memory),
            ]);
        }
    }
    report.tables.push(table);
    report
}

/// Starts a relay with these settings on a backlog, and watches its cursor over so many events.
pub(super) fn catch_up(
    bench: &mut Bench,
    sink: Sink,
    events: u64,
    settings: &[(&str, &str)],
) -> Run {
    let to = bench.destination(sink, Place::Anywhere);
    let setup = to.settings(bench.setup());
    let setup = settings
        .iter()
        .fold(setup, |setup, (name, value)| setup.set(name, value));
    bench.backlogs.copy(bench.options.backlog, &setup);
    sync();
    let mut relay = Server::launch(setup, &bench.cores, Place::Anywhere);
    let first_answer = relay.until_answers().as_secs_f64();
    let (before, first) = (relay.usage(), watch(&relay, sink, |it| it.cursor > 0));
    let last = watch(&relay, sink, |it| it.lag == 0 || it.cursor >= events);
    let (after, memory) = (relay.usage(), mib(relay.peak_memory()));
    drop(relay);
    to.remove();
    let confirmed = (last.1.cursor - first.1.cursor) as f64;
    let whole = last.1.cursor as f64;
    Run {
        rate: confirmed / (last.0 - first.0).as_secs_f64(),
        first_answer,
        memory,
        cpu: after.cpu.saturating_sub(before.cpu).as_secs_f64() / whole * 1e6,
        written: (after.written - before.written) as f64 / whole,
    }
}

/// When the sink came to stand where it is wanted, and where it stood.
fn watch(relay: &Server, sink: Sink, wanted: impl Fn(Position) -> bool) -> (Instant, Position) {
    let position = relay.until_sink(sink.name(), TIMEOUT, wanted);
    (Instant::now(), position)
}

/// The same events by a bare client.
fn publish(bench: &mut Bench, sink: Sink, events: u64) -> f64 {
    let to = bench.destination(sink, Place::Anywhere);
    sync();
    let rate = bench.cores.on(Place::Anywhere, || match sink {
        Sink::Kafka => bare_producer::publish(to.kafka(), &to.name, events),
        Sink::RabbitMq => bare_publisher::publish(to.rabbitmq(), &to.name, events),
        Sink::Stdout => panic!("a broker"),
    });
    to.remove();
    rate
}
