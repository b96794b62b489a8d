//! The vendor's callback protocol: classifies a request, checks its signature, parses it, and builds the answer. Pure:
//! no I/O, no clock.
//!
//! Promises:
//! - a request that is not a recall is never refused here: another answer than `OK`/0 to one of the vendor's
//!   *before*-callbacks could block an application's users;
//! - a recall whose identity can be parsed becomes an event, even if other fields are missing or invalid, and whatever
//!   values RFC 8259 allows there;
//! - an authentic recall that cannot be parsed is stored whole as a dead letter, never dropped.
//!
//! It does not check whether a request comes from the vendor's network: the receiver does.

mod answer;
mod classify;
mod command;
mod json;
mod query;
mod recall;
mod signature;

use std::time::Duration;

pub use answer::{FAIL_CODE, OK, fail};
pub use classify::{Body, Class, classify};
pub use command::{NO_COMMAND, OTHER_COMMAND, Recall, known_command, known_commands};
pub use json::{Object, Value};
pub use query::Query;
pub use recall::{IGNORABLE_FIELDS, IgnoredField, ParseError, ParsedRecall, parse_recall};
pub use signature::{SignatureError, Token, Tokens, check_signature};

/// How long the vendor waits for an answer.
pub const VENDOR_TIMEOUT: Duration = Duration::from_secs(2);
