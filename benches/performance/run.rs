//! Plays the scenarios, prints their tables, and holds the figures against the targets.

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

/// Plays those that are asked for. Fails where one breaks, and for a missed target if that is asked for.
pub fn all(filters: Vec<String>) -> ExitCode {
    let options = Options::read(filters);
    let mut bench = Bench::new(options.clone());
    let (run, about) = about(&bench);
    println!("{about}\n");
    let (mut reports, mut broken): (Vec<Report>, Vec<&str>) = (Vec::new(), Vec::new());
    for scenario in scenarios::ALL {
        if !options.wants(scenario.name) {
            continue;
        }
        let began = Instant::now();
        let played = catch_unwind(AssertUnwindSafe(|| (scenario.play)(&mut bench)));
        if let Ok(report) = played {
            println!("{}", report.markdown());
            reports.push(report);
        } else {
            broken.push(scenario.name);
        }
        eprintln!("{} took {} s", scenario.name, began.elapsed().as_secs());
        // What there is already, should the next one not end well.
        table::write(&output_folder(), &run, &about, &reports);
    }
    drop(bench);
    println!("{}", table::targets(&reports));
    for name in &broken {
        println!("{name}: not measured to its end");
    }
    let all_hold = reports.iter().flat_map(|it| &it.targets).all(Target::holds);
    let fails = reports.is_empty() || !broken.is_empty() || (options.asserts && !all_hold);
    ExitCode::from(u8::from(fails))
}

/// Draws the plots of a `performance.json` beside it, without measuring.
pub fn plot(file: &Path) {
    let report = fs::read(file).expect("a report");
    let report = serde_json::from_slice(&report).expect("a report in JSON");
    table::draw(file.parent().expect("a folder"), &report);
}

/// What was measured where, for programs and for people.
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
        about.push_str(". The short form shows that the bench works; its figures mean nothing");
    }
    if cores < 2 {
        about.push_str(". One core: nothing could be pinned apart");
    }
    (run, about)
}
