//! The receiver: the HTTP server that the vendor calls.
//!
//! Promises:
//! - a recall is answered `OK`/0 only after its event is durable;
//! - every request whose head can be read is answered in the vendor's format;
//! - everything that a client can make wait or grow is bounded: connections, bodies, and the duration of each step.
//!
//! It does not depend on the brokers: their state does not change any answer.

mod answer;
mod auth;
mod body;
mod callback_service;
mod config;
mod connection_timer;
mod counts;
mod durability;
mod limits;
mod listener;
mod metrics;
mod unaccepted;

pub use auth::{Auth, Config as AuthConfig};
pub use callback_service::CallbackService;
pub use config::Config;
pub use durability::{Durability, Kept, NotKept};
pub use limits::Limits;
pub use listener::{BindError, Listener};
pub use unaccepted::UnacceptedRecalls;
