//! The crash matrix: callbacks at a steady rate, something breaks, and every one that was answered OK
//! is found at the broker, in its conversation's order.
//!
//! `tests/crash` runs it in its long form and says what it prints; a plain `cargo test` runs the short
//! form of every scenario; `tests/soak` mixes the faults for as long as one wants. One process sends and writes down the answers (`driver`), this one breaks
//! things (`stage`, `scenarios`), an independent subscriber reads what has arrived (`broker`), and
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
