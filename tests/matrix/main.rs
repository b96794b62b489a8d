//! The crash matrix: injects faults under a steady rate of callbacks, and checks that every callback that was answered
//! OK is at the broker, in the order of its conversation.
//!
//! `tests/crash` runs the long form and describes its output; `cargo test` runs the short form of every scenario;
//! `tests/soak` injects random faults for a given time. One process sends callbacks and records the answers (`driver`),
//! this one injects the faults (`stage`, `scenarios`), an independent subscriber reads the events (`broker`), and
//! `verdict` compares the two.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, and this one prints a table"
)]

mod broker;
mod driver;
mod ledger;
mod lost_machines;
mod options;
#[path = "../rig/mod.rs"]
mod rig;
mod run;
mod scenarios;
mod soak;
mod stage;
mod table;
mod verdict;

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("drive") => {
            driver::run(&arguments[1..]);
            ExitCode::SUCCESS
        }
        Some("soak") => soak::run(&arguments[1..]),
        _ => run::all(),
    }
}
