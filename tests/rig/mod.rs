//! The test rig: the relay as a separate process, brokers, a backend, and the vendor.
//!
//! Each test file uses only a part of it.
#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test file uses a part of the rig"
)]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod authority;
mod backend;
mod broker;
mod browser;
mod faults;
mod haproxy;
mod https;
pub mod kafka;
mod node;
mod oracle;
mod prometheus;
mod proxy;
pub mod rabbitmq;
mod relay;
mod shape;
mod vendor;

use std::thread;
use std::time::{Duration, Instant};

pub use authority::Authority;
pub use backend::{Backend, Received, Reply};
pub use broker::Broker;
pub(crate) use broker::on_both_brokers;
pub use browser::Browser;
pub use faults::{Calls, Faults};
pub use haproxy::start_haproxy;
pub use https::{HttpsClient, HttpsConnection};
pub use kafka::Kafka;
pub use node::{free_port, poll};
pub use oracle::{
    Recall, assert_kept, assert_none_missing, kill_repeatedly, published, read_dead_letters,
    read_events, read_spool, under_load,
};
pub use prometheus::{ExportedSeries, Prometheus};
pub use proxy::{NetworkMode, Proxy};
pub use rabbitmq::RabbitMq;
pub use relay::{APP, Lines, Relay, Setup};
pub use shape::shape;
pub use vendor::{
    Answer, Connection, Load, connect_from, encode, large_recall, padded_recall, recall,
    recall_query, request,
};

/// How long a condition may take to become true, on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until `look` returns a value.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        #[expect(
            clippy::disallowed_methods,
            reason = "between two looks at the condition"
        )]
        thread::sleep(Duration::from_millis(20));
    }
}
