//! Runs the scenarios, prints their tables, and compares the results with the targets.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};

use super::bench::Bench;
use super::options::{Form, Options, output_folder};
use super::scenarios;
use super::table::{self, Report, Target};

/// Runs the selected scenarios. Fails if one of them panics, and for a missed target if the options say so.
pub fn all(filters: Vec<String>) -> ExitCode {
    let options = Options::read(filters);
    let mut bench = Bench::new(options.clone());
    let (run, about) = about(&bench);
    println!("{about}\n");
    let (mut reports, mut failed): (Vec<Report>, Vec<&str>) = (Vec::new(), Vec::new());
    let all = scenarios::ALL.into_iter();
    let on_request = scenarios::ON_REQUEST.into_iter();
    let selected = all
        .filter(|it| options.filters.is_empty() || options.is_named(it.name))
        .chain(on_request.filter(|it| options.is_named(it.name)));
    for scenario in selected {
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| (scenario.run)(&mut bench)));
        if let Ok(report) = result {
            println!("{}", report.markdown());
            reports.push(report);
        } else {
            failed.push(scenario.name);
        }
        eprintln!("{} took {} s", scenario.name, began.elapsed().as_secs());
        // Write the results so far, in case the next scenario fails.
        table::write(&output_folder(), &run, &about, &reports);
    }
    drop(bench);
    println!("{}", table::targets(&reports));
    for name in &failed {
        println!("{name}: not completed");
    }
    let all_met = reports
        .iter()
        .flat_map(|it| &it.targets)
        .all(Target::is_met);
    let fails =
        reports.is_empty() || !failed.is_empty() || (options.fail_on_missed_target && !all_met);
    ExitCode::from(u8::from(fails))
}

/// Draws the plots of a `performance.json` beside it, without measuring.
pub fn plot(file: &Path) {
    let report = fs::read(file).expect("cannot read the report");
    let report = serde_json::from_slice(&report).expect("the report is not JSON");
    table::draw(file.parent().expect("the report has no folder"), &report);
}

/// Describes the run and the machine: as JSON, and as text.
fn about(bench: &Bench) -> (Value, String) {
    let options = &bench.options;
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, model)| model);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (cores, seconds) = (bench.cores.count(), options.round.as_secs());
    let run = json!({
        "version": env!("CARGO_PKG_VERSION"), "processor": model, "cores": cores,
        "kernel": kernel.trim(), "form": format!("{:?}", options.form).to_lowercase(),
        "rounds": options.rounds, "seconds": seconds, "backlog": options.backlog,
        "settings": options.settings.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
    });
    let mut about = format!(
        "recall-relay {}, {model}, {cores} cores; {} rounds of {seconds} s",
        env!("CARGO_PKG_VERSION"),
        options.rounds,
    );
    if options.form == Form::Short {
        about.push_str(". The short form is a smoke test; its results are meaningless");
    }
    if cores < 2 {
        about.push_str(". Only one core: server and generator share it");
    }
    (run, about)
}
