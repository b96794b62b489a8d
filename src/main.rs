//! The program; everything is in the library.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// At 256 connections a callback costs a seventh less CPU with it than with glibc's (docs/explanation/performance.md).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    recall_relay::cli::main(std::env::args_os())
}
