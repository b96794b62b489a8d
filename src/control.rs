//! The control socket: commands on the same machine ask the running relay, and have it change something.
//!
//! It is a Unix socket beside the spool, `<spool.path>.sock`, for the relay's own user and root. A connection carries
//! one request, a line of JSON, and its replies, one line each. Whoever may open it may also open the spool.

pub mod client;
mod protocol;
mod server;
mod socket;

pub use protocol::{
    ControlCommand, DeadLetterKey, Progress, RelayStatus, Reply, SinkStatus, configured,
    parse_reply, parse_request,
};
pub use server::{ControlServer, Target, serve};
