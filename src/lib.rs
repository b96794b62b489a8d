//! recall-relay acknowledges Tencent Cloud IM recall callbacks at once and publishes each as an event to
//! Kafka or RabbitMQ. **A callback that was answered OK is on disk, and reaches the broker, whatever
//! breaks in between.**
//!
//! ```text
//! vendor ── POST ──▶ receiver ── append ──▶ spool ──▶ forwarder ──▶ sink ──▶ broker
//!           ◀─ OK/0 ── after the commit ────┘  ▲ cursor per sink ◀── confirmed ──┘
//! ```
//!
//! In the order in which a callback passes them:
//!
//! - [`receiver`] listens, limits, authenticates recalls, and answers;
//! - [`callback`] knows the vendor's protocol: pure functions from a request to an event and an answer;
//! - [`event`] is what is published: its id, its bytes;
//! - [`spool`] keeps events on disk, in order, until every sink has confirmed them;
//! - [`forwarder`] takes them from the spool to a sink and moves the cursor;
//! - [`sink`] speaks to one broker: Kafka, RabbitMQ, or standard output;
//! - [`admin`] tells operators how all this is doing;
//! - [`app`] builds and stops it, [`config`] assembles the settings, [`cli`] is the command line.
//!
//! [`setting`] and [`telemetry`] are used by every module: how a setting is read, and the log.
//!
//! The words are explained in `docs/reference/glossary.md`.

pub mod admin;
pub mod app;
pub mod callback;
pub mod cli;
pub mod config;
pub mod event;
pub mod forwarder;
pub mod receiver;
pub mod setting;
pub mod sink;
pub mod spool;
pub mod telemetry;
