//! The vendor's callback protocol: what a request is, whether it is authentic, what it says, and what
//! to answer. Pure: no I/O, no clock.
//!
//! Promises:
//! - whatever is not a recall is answered `OK`/0, because any other answer to one of the vendor's
//!   *before*-callbacks could block an application's users;
//! - a recall whose identity is understood becomes an event, however odd its other fields;
//! - an authentic recall that is not understood is kept whole, never dropped.
//!
//! It does not decide whether a request comes from the vendor's network: that is the receiver's.

mod answer;
mod classify;
mod command;
mod query;
mod recall;
mod signature;

pub use answer::{FAIL_CODE, OK, fail};
pub use classify::{Body, Class, classify};
pub use command::{OTHER_COMMAND, Recall, known_command};
pub use query::Query;
pub use recall::{IgnoredField, ParseError, ParsedRecall, parse_recall};
pub use signature::{SignatureError, Tokens, check_signature};
