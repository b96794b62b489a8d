//! Runs the scenarios, checks the bounds of each, and prints the table.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

use super::broker::{Broker, Sink};
use super::lost_machines::distinguishes_answers_after_the_broker;
use super::options::{Form, Options, output_folder};
use super::scenarios::{Scenario, all as scenarios, on_clusters};
use super::stage::Stage;
use super::table::{self, Row};
use super::verdict::detects_every_kind_of_violation;

/// The maximum peak memory of a relay in any scenario, built without optimisation.
const MAX_MEMORY: u64 = 160 << 20;

/// Runs the scenarios that the command line selects.
pub fn all() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let options = Options::read();
    arguments.test_threads = Some(at_a_time(options.form));
    let rows: Arc<Mutex<Vec<Row>>> = Arc::default();
    let brokers = Arc::new(Brokers::new(options.form));
    let oracle = |name: &str, test: fn()| {
        Trial::test(format!("oracle::{name}"), move || {
            test();
            Ok(())
        })
    };
    let mut trials = vec![
        oracle(
            "detects_every_kind_of_violation",
            detects_every_kind_of_violation,
        ),
        oracle(
            "distinguishes_answers_after_the_broker",
            distinguishes_answers_after_the_broker,
        ),
    ];
    let on_clusters = match options.form {
        Form::Short => Vec::new(),
        Form::Long => on_clusters(),
    };
    let on_clusters = on_clusters.into_iter().flat_map(|scenario| {
        let sinks = scenario.sinks.iter();
        sinks.map(move |sink| (*sink, scenario, true))
    });
    let on_nodes = in_order(options.form).into_iter();
    let on_nodes = on_nodes.map(|(sink, scenario)| (sink, scenario, false));
    for (sink, scenario, on_cluster) in on_nodes.chain(on_clusters) {
        let (rows, brokers) = (Arc::clone(&rows), Arc::clone(&brokers));
        let name = format!("{}::{}", sink.label(), scenario.name);
        trials.push(Trial::test(name, move || {
            let run = |broker: &mut Broker| run_scenario(&scenario, broker, sink, options);
            let row = if on_cluster {
                brokers.stop();
                run(&mut Broker::start_cluster(sink))
            } else {
                brokers.with(sink, run)
            };
            let problems = row.problems.join("\n");
            rows.lock().unwrap().push(row);
            if problems.is_empty() {
                Ok(())
            } else {
                Err(Failed::from(problems))
            }
        }));
    }
    let list_only = arguments.list;
    if !list_only {
        println!("seed {} (RECALL_TEST_SEED)", options.seed);
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    brokers.stop();
    let mut rows = rows.lock().unwrap();
    rows.sort_by_key(|row| Sink::ALL.iter().position(|sink| sink.label() == row.sink));
    if !list_only && !rows.is_empty() {
        println!("{}", table::markdown(&rows));
        table::write(&output_folder(), "matrix", &rows, &options);
    }
    conclusion.exit_code()
}

/// How many scenarios run at a time, on different brokers. The long form measures, so each of its scenarios has the
/// machine for itself.
const fn at_a_time(form: Form) -> usize {
    match form {
        Form::Short => 2,
        Form::Long => 1,
    }
}

/// The scenarios in an order in which those that run at a time are on different brokers.
fn in_order(form: Form) -> Vec<(Sink, Scenario)> {
    let mut order = Vec::new();
    for sink in Sink::ALL {
        let scenarios = scenarios().into_iter().enumerate();
        let of_sink = scenarios.filter(|(_, scenario)| scenario.sinks.contains(&sink));
        order.extend(of_sink.map(|(number, scenario)| (number, sink, scenario)));
    }
    if form == Form::Short {
        order.sort_by_key(|(number, ..)| *number);
    }
    order
        .into_iter()
        .map(|(_, sink, scenario)| (sink, scenario))
        .collect()
}

/// The running brokers, one for each sink, which its scenarios share.
struct Brokers {
    running: BTreeMap<Sink, Mutex<Option<Broker>>>,
    /// Whether a broker is stopped when a scenario runs on another one.
    only_one: bool,
}

impl Brokers {
    fn new(form: Form) -> Self {
        Self {
            running: Sink::ALL.map(|sink| (sink, Mutex::default())).into(),
            only_one: form == Form::Long,
        }
    }

    /// Runs a scenario on the broker of a sink. If that fails, the next scenario gets a new one.
    fn with(&self, sink: Sink, run: impl FnOnce(&mut Broker) -> Row) -> Row {
        if self.only_one {
            self.stop_except(Some(sink));
        }
        let mut broker = lock(&self.running[&sink]);
        let row = run(broker.get_or_insert_with(|| Broker::start(sink)));
        if !row.problems.is_empty() {
            *broker = None;
        }
        row
    }

    fn stop(&self) {
        self.stop_except(None);
    }

    fn stop_except(&self, kept: Option<Sink>) {
        let others = self.running.iter().filter(|(sink, _)| Some(**sink) != kept);
        others.for_each(|(_, broker)| *lock(broker) = None);
    }
}

fn lock(broker: &Mutex<Option<Broker>>) -> MutexGuard<'_, Option<Broker>> {
    broker.lock().unwrap_or_else(PoisonError::into_inner)
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
    check(&mut row, scenario, sink, options.form);
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

/// Checks the bounds of a row. How soon a sink has caught up depends on the broker's disk, so it has a bound only in the
/// long form, which has the machine for itself. In the short form the stage's timeout detects a sink that never does.
fn check(row: &mut Row, scenario: &Scenario, sink: Sink, form: Form) {
    let faults = row.faults.max(1) as u64;
    let duplicates = match sink {
        Sink::KafkaExactlyOnce => 0,
        Sink::Kafka | Sink::RabbitMq => scenario.duplicates * faults,
    };
    if row.duplicates > duplicates {
        let bound = format!("{} duplicates, more than {duplicates}", row.duplicates);
        row.problems.push(bound);
    }
    if row.losses.is_some_and(|losses| losses.after_broker == 0) {
        let problem = "no callback was answered after the broker";
        row.problems.push(problem.to_owned());
    }
    let slow = |time: Option<Duration>| time.is_some_and(|time| time > scenario.recovery);
    if slow(row.answers_again) || form == Form::Long && slow(row.caught_up) {
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
