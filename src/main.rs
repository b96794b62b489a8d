//! The program; all code is in the library.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// At 256 connections a callback takes a seventh less CPU with jemalloc than with glibc's allocator
/// (docs/explanation/performance.md).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// jemalloc reads this symbol when it starts. With one arena for all threads, and freed memory returned to the system
/// early, publishing a backlog takes a third less memory at the same speed (docs/explanation/performance.md).
#[expect(
    unsafe_code,
    reason = "jemalloc finds its settings by the name of a symbol"
)]
#[unsafe(export_name = "malloc_conf")]
static MALLOC_CONF: &[u8] = b"narenas:1,dirty_decay_ms:200\0";

fn main() -> ExitCode {
    recall_relay::cli::main(std::env::args_os())
}
