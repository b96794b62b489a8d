//! What a durable answer costs: the relay next to a bare hyper server that keeps nothing, and next to bare
//! clients of the same brokers, in the same run.
//!
//! `benches/run` is how it is run; it tells the options. A scenario is a file of `scenarios/`:
//!
//! - `answers`: bare hyper, and the relay with stdout, Kafka and RabbitMQ, at 1 to 256 connections;
//! - `fsync`: the answer at one connection, next to a sync of the same disk;
//! - `broker_down`, `catching_up`: the answer while the broker is away, and while a backlog goes out;
//! - `growth`: over connections, recalled messages, conversations and backlog;
//! - `slow_disk`: on a disk whose syncs take longer;
//! - `exactly_once`: what `kafka.exactly_once` costs, next to the relay without it;
//! - `backlog`: how fast a backlog goes out, next to a bare producer and a bare publisher.
//!
//! The load is wrk (`load`), and each callback has a message of its own (`callbacks.lua`). The server has a
//! core to itself (`cores`); the generator, the brokers and this process have the others. A backlog
//! that goes out alone is not pinned.
//! A round loads one server for some seconds, and goes on until its sink has confirmed everything, where it is not
//! about a sink that is away or behind: forwarding is part of what a callback costs. Rounds alternate between the servers that are compared. A figure is the median
//! of its rounds, but of memory and of the longest answer the largest; a ratio is the median of the rounds' ratios.
//!
//! CPU time is that of the process (`/proc/PID/stat`), bytes written are those that it caused to go to a disk
//! (`/proc/PID/io`), memory is its resident set at its peak (`VmHWM`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    reason = "a benchmark fails by panicking, and prints tables"
)]
#![allow(clippy::cast_precision_loss, reason = "figures")]

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
    // cargo's own word for every bench.
    let arguments: Vec<String> = env::args().skip(1).filter(|it| it != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some("bare") => {
            bare::serve(&arguments[1]);
            ExitCode::SUCCESS
        }
        Some("--list") => {
            for scenario in scenarios::ALL {
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
