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
mod budget;
mod callback_service;
mod certificate_expiry;
mod config;
mod connection;
mod connection_timer;
mod connections;
mod counts;
mod durability;
mod handshakes;
mod head;
mod limits;
mod linger;
mod listener;
mod metrics;
mod peer;
mod proxy_protocol;
mod service;
mod unaccepted;

pub use auth::{Auth, Config as AuthConfig};
pub use callback_service::CallbackService;
pub use config::Config;
pub use connection::{ConnectionSetup, serve_alone};
pub use durability::{Durability, Kept, NotKept};
pub use handshakes::Handshakes;
pub use limits::Limits;
pub use listener::{BindError, Listener};
pub use peer::Peer;
pub use service::{Service, Trust};
pub use unaccepted::UnacceptedRecalls;
