//! Runs the scenarios one after the other, checks the bounds of each, and prints the table.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

use super::broker::{Broker, Sink};
use super::options::{Options, output_folder};
use super::scenarios::{Scenario, all as scenarios};
use super::stage::Stage;
use super::table::{self, Row};
use super::verdict::detects_every_kind_of_violation;

/// The maximum peak memory of a relay in any scenario, built without optimisation.
const MAX_MEMORY: u64 = 160 << 20;

/// Runs the scenarios that the command line selects.
pub fn all() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The scenarios share brokers and the machine.
    arguments.test_threads = Some(1);
    let options = Options::read();
    let rows: Arc<Mutex<Vec<Row>>> = Arc::default();
    let running: Arc<Mutex<RunningBroker>> = Arc::default();
    let mut trials = vec![Trial::test(
        "oracle::detects_every_kind_of_violation",
        || {
            detects_every_kind_of_violation();
            Ok(())
        },
    )];
    for sink in Sink::ALL {
        for scenario in scenarios() {
            if scenario.sinks.contains(&sink) {
                let (rows, running) = (Arc::clone(&rows), Arc::clone(&running));
                let name = format!("{}::{}", sink.label(), scenario.name);
                trials.push(Trial::test(name, move || {
                    let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
                    let row = run_scenario(&scenario, running.broker(sink), sink, options);
                    let problems = row.problems.join("\n");
                    rows.lock().unwrap().push(row);
                    if problems.is_empty() {
                        Ok(())
                    } else {
                        // The next scenario gets a new broker.
                        running.stop();
                        Err(Failed::from(problems))
                    }
                }));
            }
        }
    }
    let list_only = arguments.list;
    if !list_only {
        println!("seed {} (RECALL_TEST_SEED)", options.seed);
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    running.lock().unwrap().stop();
    let rows = rows.lock().unwrap();
    if !list_only && !rows.is_empty() {
        println!("{}", table::markdown(&rows));
        table::write(&output_folder(), "matrix", &rows, &options);
    }
    conclusion.exit_code()
}

/// The running broker, which its scenarios share. Only one broker runs at a time.
#[derive(Default)]
struct RunningBroker(BTreeMap<Sink, Broker>);

impl RunningBroker {
    fn broker(&mut self, sink: Sink) -> &mut Broker {
        self.0.retain(|other, _| *other == sink);
        self.0.entry(sink).or_insert_with(|| Broker::start(sink))
    }

    fn stop(&mut self) {
        self.0.clear();
    }
}

fn run_scenario(scenario: &Scenario, broker: &mut Broker, sink: Sink, options: Options) -> Row {
    let began = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut stage = Stage::new(scenario.name, std::slice::from_mut(broker), options);
        (scenario.run)(&mut stage);
        stage.finish()
    }));
    let mut row = match result {
        Ok(mut rows) => rows.remove(0),
        Err(panic) => Row {
            scenario: scenario.name.to_owned(),
            sink: sink.label().to_owned(),
            problems: vec![format!("aborted: {}", text(&*panic))],
            ..Row::default()
        },
    };
    check(&mut row, scenario, sink);
    println!(
        "{} took {:.1} s",
        scenario.name,
        began.elapsed().as_secs_f64()
    );
    row
}

fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}

fn check(row: &mut Row, scenario: &Scenario, sink: Sink) {
    let faults = row.faults.max(1) as u64;
    let duplicates = match sink {
        Sink::KafkaExactlyOnce => 0,
        Sink::Kafka | Sink::RabbitMq => scenario.duplicates * faults,
    };
    if row.duplicates > duplicates {
        let bound = format!("{} duplicates, more than {duplicates}", row.duplicates);
        row.problems.push(bound);
    }
    let slow = |time: Option<Duration>| time.is_some_and(|time| time > scenario.recovery);
    if slow(row.caught_up) || slow(row.answers_again) {
        let bound = format!("took longer than {:?} to recover", scenario.recovery);
        row.problems.push(bound);
    }
    if row.peak_memory > MAX_MEMORY {
        let bound = format!(
            "{} bytes of memory, more than {MAX_MEMORY}",
            row.peak_memory
        );
        row.problems.push(bound);
    }
}
