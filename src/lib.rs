//! recall-relay acknowledges Tencent Cloud IM recall callbacks at once and publishes each one as an event to
//! Kafka or RabbitMQ. **A callback that was answered OK is on disk and reaches the broker, whatever fails
//! in between.**
//!
//! ```text
//! vendor ── POST ──▶ receiver ── append ──▶ spool ──▶ forwarder ──▶ sink ──▶ broker
//!           ◀─ OK/0 ── after the commit ────┘  ▲ cursor per sink ◀── confirmed ──┘
//! ```
//!
//! The modules, in the order in which a callback passes through them:
//!
//! - [`receiver`] accepts connections, enforces limits, authenticates recalls and answers them;
//! - [`callback`] implements the vendor's protocol: pure functions from a request to an event and an answer;
//! - [`event`] defines what is published: an event's id and bytes;
//! - [`spool`] keeps events on disk, in order, until every sink has confirmed them;
//! - [`forwarder`] reads events from the spool, publishes them to a sink and advances the cursor;
//! - [`sink`] is the client of one broker: Kafka, RabbitMQ or standard output;
//! - [`upstream`] hands every other callback on to the application's backend, whose answer goes back;
//! - [`admin`] serves health, readiness, metrics and the status page to operators;
//! - [`app`] starts and stops all of these, [`config`] assembles the settings, [`reload`] changes them while the relay
//!   runs, [`cli`] is the command line.
//!
//! [`vendor`] acts as the vendor, for the command `send`, the tests and the benchmarks.
//!
//! Every module uses [`setting`] (parsing a setting) and [`telemetry`] (the log).
//!
//! `docs/reference/glossary.md` explains the terms.

pub mod admin;
pub mod app;
pub mod callback;
pub mod cli;
pub mod config;
pub mod control;
pub mod event;
pub mod forwarder;
pub mod receiver;
pub mod reload;
pub mod setting;
pub mod sink;
pub mod spool;
pub mod telemetry;
pub mod upstream;
pub mod vendor;
