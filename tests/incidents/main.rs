//! What an operator sees when something fails: each incident of docs/how-to/incidents.md happens here for real.
//!
//! The page shows the log, `/readyz` and the status page in each incident. A test fails if the log or the states in
//! `/readyz` are others. `RECALL_TEST_REGENERATE=1` writes all three into the page. An incident that takes minutes runs
//! with `--include-ignored`.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "../rig/mod.rs"]
mod rig;

mod alerts;
mod brokers;
mod callbacks;
mod clients;
mod disk;
mod down;
mod page;
mod process;
mod refused;
mod slow;
mod starts;
mod upstream;
