//! Compact JSON.

use bytes::Bytes;
use serde::Serialize;

/// Capacity for an event about one message, with some to spare.
const USUAL_BYTES: usize = 768;

#[expect(
    clippy::expect_used,
    reason = "strings, numbers and structs of them always have a JSON form"
)]
pub(super) fn to_json(value: &impl Serialize) -> Bytes {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    serde_json::to_writer(&mut bytes, value).expect("an event has a JSON form");
    bytes.into()
}
