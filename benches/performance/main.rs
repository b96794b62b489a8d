//! Measures what a durable answer costs: compares the relay with a bare hyper server that stores nothing, and with
//! bare clients of the same brokers, in the same run.
//!
//! `benches/run` runs it and documents the options. A scenario is a file of `scenarios/`:
//!
//! - `answers`: bare hyper, and the relay with stdout, Kafka and RabbitMQ, at 1 to 256 connections;
//! - `fsync`: the answer at one connection, compared with a sync of the same disk;
//! - `broker_down`, `catching_up`: the answer while the broker is down, and while a backlog is published;
//! - `growth`: over connections, recalled messages, conversations and backlog;
//! - `slow_disk`: on a disk whose syncs take longer;
//! - `exactly_once`: the cost of `kafka.exactly_once`, compared with the relay without it;
//! - `backlog`: how fast a backlog is published, compared with a bare producer and a bare publisher;
//! - `answer_after`, if it is named: the cost of `answer_after = "broker"`, while the broker works and while it dies.
//!
//! The load generator is wrk (`load`), and each callback has its own message (`callbacks.lua`). The server has its own
//! core (`cores`); the generator, the brokers and this process share the others. A backlog published without load is
//! not pinned.
//! A round loads one server for some seconds. It then waits until the sink has confirmed everything, because forwarding
//! is part of the cost of a callback; scenarios with a sink that is down or has a backlog do not wait. Rounds alternate
//! between the servers that are compared. Each result is the median of its rounds; for memory and the longest answer
//! it is the maximum. A ratio is the median of the rounds' ratios.
//!
//! CPU time is that of the process (`/proc/PID/stat`), bytes written are those that it sent to a disk
//! (`/proc/PID/io`), memory is its peak resident set (`VmHWM`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    reason = "a benchmark fails by panicking, and prints tables"
)]
#![allow(
    clippy::cast_precision_loss,
    reason = "results need no exact precision"
)]

mod backlog;
mod bare;
mod bare_producer;
mod bare_publisher;
mod bench;
mod columns;
mod cores;
mod folder;
mod load;
mod options;
mod plot;
#[path = "../../tests/rig/mod.rs"]
mod rig;
mod round;
mod run;
mod scenarios;
mod server;
mod subscriber;
mod table;
mod wait;

use std::env;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    // cargo passes this argument to every benchmark.
    let arguments: Vec<String> = env::args().skip(1).filter(|it| it != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some("bare") => {
            bare::serve(&arguments[1]);
            ExitCode::SUCCESS
        }
        Some("--list") => {
            for scenario in scenarios::ALL.into_iter().chain(scenarios::ON_REQUEST) {
                println!("{}", scenario.name);
            }
            ExitCode::SUCCESS
        }
        Some("--plot") => {
            run::plot(Path::new(&arguments[1]));
            ExitCode::SUCCESS
        }
        _ => run::all(arguments),
    }
}
