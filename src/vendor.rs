//! Acts as the vendor: the callbacks byte for byte, their query and their signature; what `send`, the tests, the crash
//! matrix and the benchmarks send.
//!
//! It shares no code with [`callback`](crate::callback) on purpose: if the receiver and the vendor called one function,
//! neither would check it.

mod body;
mod query;

pub use body::{BodyFormat, EventTimeForm, PayloadVersion, msg_id};
pub use query::{CallbackKind, sign};
