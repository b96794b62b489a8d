//! The soak: load and random faults for a given time, on one relay that publishes to all brokers.
//!
//! It runs in rounds of a few faults. Each round has its own conversations. At the end of a round, the soak waits until
//! all events are confirmed, reads them, compares them with the ledger and drops them, which bounds its memory.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::broker::{Broker, Sink};
use super::options::{Options, output_folder};
use super::rig::NetworkMode;
use super::stage::Stage;
use super::table::{self, Row};

/// Faults per round.
const FAULTS: usize = 5;

/// The maximum number of duplicates per fault, on one sink.
const DUPLICATES: u64 = 2000;

const fn duplicates(sink: Sink) -> u64 {
    match sink {
        Sink::KafkaExactlyOnce => 0,
        Sink::Kafka | Sink::RabbitMq => DUPLICATES,
    }
}

/// The faults and their frequencies: short ones are more frequent.
const FAULTS_BY_WEIGHT: [(Fault, u32); 7] = [
    (Fault::KillRelay, 6),
    (Fault::StopRelay, 3),
    (Fault::Partition, 2),
    (Fault::Slow, 2),
    (Fault::Freeze, 2),
    (Fault::KillBroker, 1),
    (Fault::StopBroker, 1),
];

#[derive(Debug, Clone, Copy)]
enum Fault {
    KillRelay,
    StopRelay,
    /// The bytes to and from a broker are lost, and its connections stay open.
    Partition,
    Slow,
    Freeze,
    KillBroker,
    StopBroker,
}

/// `soak DURATION [kafka|kafka_exactly_once|rabbitmq|both]`
pub fn run(arguments: &[String]) -> ExitCode {
    let time = arguments.first().expect("soak DURATION [SINKS]");
    let time = humantime::parse_duration(time).expect("DURATION must be like 30m");
    let sinks = match arguments.get(1).map_or("both", String::as_str) {
        "kafka" => vec![Sink::Kafka],
        "kafka_exactly_once" => vec![Sink::KafkaExactlyOnce],
        "rabbitmq" => vec![Sink::RabbitMq],
        "both" => vec![Sink::Kafka, Sink::RabbitMq],
        other => panic!("{other:?} is not kafka, kafka_exactly_once, rabbitmq or both"),
    };
    let options = Options::read();
    println!("seed {} (RECALL_TEST_SEED)", options.seed);
    let mut brokers: Vec<Broker> = sinks.into_iter().map(Broker::start).collect();
    let rows = soak(&mut brokers, options, time);
    println!("{}", table::markdown(&rows));
    table::write(&output_folder(), "soak", &rows, &options);
    for row in &rows {
        for problem in &row.problems {
            println!("{}: {problem}", row.sink);
        }
    }
    let failed = rows.iter().any(|row| !row.problems.is_empty());
    ExitCode::from(u8::from(failed))
}

fn soak(brokers: &mut [Broker], options: Options, time: Duration) -> Vec<Row> {
    let count = brokers.len();
    let bounds: Vec<u64> = brokers.iter().map(|it| duplicates(it.sink)).collect();
    let mut stage = Stage::new("soak", brokers, options);
    stage.set("RECALL_SPOOL__RETENTION", "10s");
    stage.use_short_timeouts();
    stage.add_proxies();
    stage.start_relay();
    let (began, mut printed) = (Instant::now(), Instant::now());
    let mut total: Vec<Row> = Vec::new();
    loop {
        stage.start_load();
        stage.catch_up();
        for _ in 0..FAULTS {
            let broker = stage.rng.usize(0..count);
            let fault = pick_fault(&mut stage);
            inject(&mut stage, fault, broker);
        }
        let rows = stage.drain();
        if total.is_empty() {
            total = rows;
        } else {
            for (sum, row) in total.iter_mut().zip(rows) {
                sum.add(row);
            }
        }
        if printed.elapsed() > Duration::from_secs(60) {
            println!(
                "after {} s\n{}",
                began.elapsed().as_secs(),
                table::markdown(&total)
            );
            printed = Instant::now();
        }
        let failed = total.iter().any(|row| !row.problems.is_empty());
        if failed || began.elapsed() >= time {
            break;
        }
    }
    stage.stop_relay();
    for (row, bound) in total.iter_mut().zip(bounds) {
        let bound = bound * row.faults as u64;
        if row.duplicates > bound {
            let problem = format!("{} duplicates, more than {bound}", row.duplicates);
            row.problems.push(problem);
        }
    }
    total
}

fn pick_fault(stage: &mut Stage<'_>) -> Fault {
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

/// Injects a fault, ends it, and usually waits for the recovery.
fn inject(stage: &mut Stage<'_>, fault: Fault, broker: usize) {
    let at_most = Duration::from_secs(6);
    stage.run_up_to(Duration::from_secs(2));
    match fault {
        Fault::KillRelay => {
            stage.kill_relay();
            stage.restart_relay();
        }
        Fault::StopRelay => {
            stage.stop_relay();
            stage.restart_relay();
        }
        Fault::Partition | Fault::Slow => {
            let slow = NetworkMode::Slow {
                latency: Duration::from_millis(50),
                bytes_per_second: 64 << 10,
            };
            let lost = matches!(fault, Fault::Partition);
            stage.network_of(broker, if lost { NetworkMode::DropPackets } else { slow });
            stage.run_up_to(at_most);
            stage.network_of(broker, NetworkMode::Open);
            stage.fault_ended();
        }
        Fault::Freeze => {
            stage.brokers()[broker].freeze();
            stage.run_up_to(at_most);
            stage.brokers()[broker].thaw();
            stage.fault_ended();
        }
        Fault::KillBroker => {
            stage.brokers()[broker].kill();
            stage.run_up_to(at_most);
            stage.brokers()[broker].resume();
            stage.fault_ended();
        }
        Fault::StopBroker => {
            stage.brokers()[broker].stop();
            stage.run_up_to(at_most);
            stage.brokers()[broker].resume();
            stage.fault_ended();
        }
    }
    // In one of four cases, the next fault begins before the relay has recovered from this one.
    if stage.rng.u32(0..4) > 0 {
        stage.catch_up();
    }
}
