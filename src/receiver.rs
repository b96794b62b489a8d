//! The receiver: the HTTP server that the vendor calls.
//!
//! Promises:
//! - a recall is answered `OK`/0 only after its event is durable;
//! - every request whose head can be read is answered in the vendor's format;
//! - everything that a client can make wait or grow is bounded: connections, bodies, and the duration of each step.
//!
//! It does not depend on the brokers: their state changes no answer. With `answer_after = "broker"` it changes when the
//! answer is given, but never beyond `answer_deadline`.

mod answer;
mod auth;
mod body;
mod budget;
mod callback_service;
mod clock_skew;
mod config;
mod counts;
mod durability;
mod head;
mod listener;
mod metrics;
mod unaccepted;

pub use auth::{Auth, Config as AuthConfig};
pub use callback_service::CallbackService;
pub use config::Config;
pub use durability::{AnswerAfter, Durability, NotKept, Storage, Stored};
pub use listener::{
    BindError, ConnectionSetup, Handshakes, Limits, Listener, Peer, Service, Trust, serve_alone,
};
pub use metrics::AnswerMetrics;
pub use unaccepted::UnacceptedRecalls;
