//! Acts as the vendor: builds callbacks byte for byte, with their query and signature, for `send`, the tests, the crash
//! matrix and the benchmarks.
//!
//! It shares no code with [`callback`](crate::callback) on purpose: if the receiver and the vendor called one function,
//! neither would check it.

mod body;
mod command;
mod query;

pub use body::{BodyFormat, EventTimeForm, PayloadVersion, msg_id};
pub use command::OtherCommand;
pub use query::{CallbackKind, sign};
