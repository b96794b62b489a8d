//! The program; everything is in the library.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// At 256 connections a callback costs a seventh less CPU with it than with glibc's (docs/explanation/performance.md).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// jemalloc reads this symbol at the start. One arena for all threads, and freed memory is returned to the system soon:
/// a third less memory while a backlog is published, at the same speed (docs/explanation/performance.md).
#[expect(
    unsafe_code,
    reason = "jemalloc finds its settings by the name of a symbol"
)]
#[unsafe(export_name = "malloc_conf")]
static MALLOC_CONF: &[u8] = b"narenas:1,dirty_decay_ms:200\0";

fn main() -> ExitCode {
    recall_relay::cli::main(std::env::args_os())
}
