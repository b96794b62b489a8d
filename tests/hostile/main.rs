//! Hostile clients: while each of the attacks goes on, honest callbacks are answered in time.
//!
//! `attacks` lists them, `attack` carries one out, `honest` sends signed callbacks meanwhile, and `run` measures and
//! checks. docs/explanation/hostile-clients.md describes the attacks and shows the table of the long form.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, and this one prints a table"
)]

mod attack;
mod attacks;
mod connect;
mod form;
mod honest;
#[path = "../rig/mod.rs"]
mod rig;
mod run;
mod smuggling;
mod table;

use std::process::ExitCode;

fn main() -> ExitCode {
    run::all()
}
