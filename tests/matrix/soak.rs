//! The soak: load and random faults for a chosen time, on one relay that serves the brokers at once.
//!
//! It goes in rounds of a few faults. A round has conversations of its own, and ends with everything
//! forwarded, read and judged; then what was read is forgotten, so that memory is bounded by a round.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::broker::{Broker, Sink};
use super::options::{Options, output_folder};
use super::rig::Way;
use super::stage::Stage;
use super::table::{self, Row};

/// Faults of a round.
const FAULTS: usize = 5;

/// Copies that one fault may cause, on one sink.
const DUPLICATES: u64 = 2000;

const fn duplicates(sink: Sink) -> u64 {
    match sink {
        Sink::KafkaExactlyOnce => 0,
        Sink::Kafka | Sink::RabbitMq => DUPLICATES,
    }
}

/// What can happen: more often what is quickly over.
const FAULTS_BY_WEIGHT: [(Fault, u32); 7] = [
    (Fault::KillRelay, 6),
    (Fault::StopRelay, 3),
    (Fault::Lose, 2),
    (Fault::Slow, 2),
    (Fault::Freeze, 2),
    (Fault::KillBroker, 1),
    (Fault::StopBroker, 1),
];

#[derive(Debug, Clone, Copy)]
enum Fault {
    KillRelay,
    StopRelay,
    /// A broker cannot be reached, and nobody is told.
    Lose,
    Slow,
    Freeze,
    KillBroker,
    StopBroker,
}

/// `soak DURATION [kafka|kafka_exactly_once|rabbitmq|both]`
pub fn run(arguments: &[String]) -> ExitCode {
    let time = arguments.first().expect("soak DURATION [SINKS]");
    let time = humantime::parse_duration(time).expect("a duration, like 30m");
    let sinks = match arguments.get(1).map_or("both", String::as_str) {
        "kafka" => vec![Sink::Kafka],
        "kafka_exactly_once" => vec![Sink::KafkaExactlyOnce],
        "rabbitmq" => vec![Sink::RabbitMq],
        "both" => vec![Sink::Kafka, Sink::RabbitMq],
        other => panic!("{other:?}: kafka, kafka_exactly_once, rabbitmq or both"),
    };
    let options = Options::read();
    println!("seed {} (RECALL_TEST_SEED)", options.seed);
    let mut brokers: Vec<Broker> = sinks.into_iter().map(Broker::start).collect();
    let rows = soak(&mut brokers, options, time);
    println!("{}", table::markdown(&rows));
    table::write(&output_folder(), "soak", &rows, &options);
    for row in &rows {
        for complaint in &row.complaints {
            println!("{}: {complaint}", row.sink);
        }
    }
    let failed = rows.iter().any(|row| !row.complaints.is_empty());
    ExitCode::from(u8::from(failed))
}

fn soak(brokers: &mut [Broker], options: Options, time: Duration) -> Vec<Row> {
    let count = brokers.len();
    let bounds: Vec<u64> = brokers.iter().map(|it| duplicates(it.sink)).collect();
    let mut stage = Stage::new("soak", brokers, options);
    stage.set("RECALL_SPOOL__RETENTION", "10s");
    stage.make_impatient();
    stage.put_proxies();
    stage.start_relay();
    let (began, mut told) = (Instant::now(), Instant::now());
    let mut total: Vec<Row> = Vec::new();
    loop {
        stage.start_load();
        stage.catch_up();
        for _ in 0..FAULTS {
            let of = stage.rng.usize(0..count);
            let fault = any_fault(&mut stage);
            happen(&mut stage, fault, of);
        }
        let rows = stage.drain();
        if total.is_empty() {
            total = rows;
        } else {
            for (sum, row) in total.iter_mut().zip(rows) {
                sum.add(row);
            }
        }
        if told.elapsed() > Duration::from_secs(60) {
            println!(
                "after {} s\n{}",
                began.elapsed().as_secs(),
                table::markdown(&total)
            );
            told = Instant::now();
        }
        let wrong = total.iter().any(|row| !row.complaints.is_empty());
        if wrong || began.elapsed() >= time {
            break;
        }
    }
    stage.stop_relay();
    for (row, bound) in total.iter_mut().zip(bounds) {
        let bound = bound * row.faults as u64;
        if row.duplicates > bound {
            let complaint = format!("{} duplicates, more than {bound}", row.duplicates);
            row.complaints.push(complaint);
        }
    }
    total
}

fn any_fault(stage: &mut Stage<'_>) -> Fault {
    let all = FAULTS_BY_WEIGHT.iter().map(|(_, weight)| weight).sum();
    let mut draw = stage.rng.u32(0..all);
    for (fault, weight) in FAULTS_BY_WEIGHT {
        if draw < weight {
            return fault;
        }
        draw -= weight;
    }
    Fault::KillRelay
}

/// Breaks something, mends it after a while, and waits until that is overcome.
fn happen(stage: &mut Stage<'_>, fault: Fault, of: usize) {
    let a_while = Duration::from_secs(6);
    stage.play_on_until(Duration::from_secs(2));
    match fault {
        Fault::KillRelay => {
            stage.kill_relay();
            stage.restart_relay();
        }
        Fault::StopRelay => {
            stage.stop_relay();
            stage.restart_relay();
        }
        Fault::Lose | Fault::Slow => {
            let slow = Way::Slow {
                latency: Duration::from_millis(50),
                bytes_per_second: 64 << 10,
            };
            let lose = matches!(fault, Fault::Lose);
            stage.network_of(of, if lose { Way::Lost } else { slow });
            stage.play_on_until(a_while);
            stage.network_of(of, Way::Open);
            stage.mended();
        }
        Fault::Freeze => {
            stage.brokers()[of].freeze();
            stage.play_on_until(a_while);
            stage.brokers()[of].thaw();
            stage.mended();
        }
        Fault::KillBroker => {
            stage.brokers()[of].kill();
            stage.play_on_until(a_while);
            stage.brokers()[of].resume();
            stage.mended();
        }
        Fault::StopBroker => {
            stage.brokers()[of].stop();
            stage.play_on_until(a_while);
            stage.brokers()[of].resume();
            stage.mended();
        }
    }
    // Sometimes the next fault comes before this one is overcome.
    if stage.rng.u32(0..4) > 0 {
        stage.catch_up();
    }
}
