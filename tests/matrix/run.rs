//! Plays the scenarios one after the other, checks what must hold in each, and prints the table.

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
use super::verdict::notices_what_is_wrong;

/// What a relay may use at its peak, whatever happens to it. It is built without optimisation here.
const MEMORY: u64 = 160 << 20;

/// Plays what the arguments of this test program ask for.
pub fn all() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share brokers, and a machine.
    arguments.test_threads = Some(1);
    let options = Options::read();
    let rows: Arc<Mutex<Vec<Row>>> = Arc::default();
    let house: Arc<Mutex<House>> = Arc::default();
    let mut trials = vec![Trial::test("oracle::notices_what_is_wrong", || {
        notices_what_is_wrong();
        Ok(())
    })];
    for sink in Sink::ALL {
        for scenario in scenarios() {
            if scenario.sinks.contains(&sink) {
                let (rows, house) = (Arc::clone(&rows), Arc::clone(&house));
                let name = format!("{}::{}", sink.label(), scenario.name);
                trials.push(Trial::test(name, move || {
                    let mut house = house.lock().unwrap_or_else(PoisonError::into_inner);
                    let row = play(&scenario, house.broker(sink), sink, options);
                    let complaints = row.complaints.join("\n");
                    rows.lock().unwrap().push(row);
                    if complaints.is_empty() {
                        Ok(())
                    } else {
                        house.tear_down();
                        Err(Failed::from(complaints))
                    }
                }));
            }
        }
    }
    let lists = arguments.list;
    if !lists {
        println!("seed {} (RECALL_TEST_SEED)", options.seed);
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    house.lock().unwrap().tear_down();
    let rows = rows.lock().unwrap();
    if !lists && !rows.is_empty() {
        println!("{}", table::markdown(&rows));
        table::write(&output_folder(), "matrix", &rows, &options);
    }
    conclusion.exit_code()
}

/// The broker that runs just now: one at a time, for all scenarios about it.
#[derive(Default)]
struct House(BTreeMap<Sink, Broker>);

impl House {
    fn broker(&mut self, sink: Sink) -> &mut Broker {
        self.0.retain(|there, _| *there == sink);
        self.0.entry(sink).or_insert_with(|| Broker::start(sink))
    }

    fn tear_down(&mut self) {
        self.0.clear();
    }
}

fn play(scenario: &Scenario, broker: &mut Broker, sink: Sink, options: Options) -> Row {
    let began = Instant::now();
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut stage = Stage::new(scenario.name, std::slice::from_mut(broker), options);
        (scenario.play)(&mut stage);
        stage.finish()
    }));
    let mut row = match played {
        Ok(mut rows) => rows.remove(0),
        Err(panic) => Row {
            scenario: scenario.name.to_owned(),
            sink: sink.label().to_owned(),
            complaints: vec![format!("not played to its end: {}", text(&*panic))],
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
        row.complaints.push(bound);
    }
    let slow = |time: Option<Duration>| time.is_some_and(|time| time > scenario.recovery);
    if slow(row.caught_up) || slow(row.answers_again) {
        let bound = format!("took longer than {:?} to recover", scenario.recovery);
        row.complaints.push(bound);
    }
    if row.peak_memory > MEMORY {
        let bound = format!("{} bytes of memory, more than {MEMORY}", row.peak_memory);
        row.complaints.push(bound);
    }
}
