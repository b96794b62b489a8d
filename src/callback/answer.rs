//! The answer in the vendor's format: `ActionStatus`, `ErrorInfo` and `ErrorCode`, all three required.

use bytes::Bytes;
use serde::Serialize;

/// The body that reports success to the vendor.
pub const OK: &[u8] = br#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

/// The `ErrorCode` of every answer that is not [`OK`].
pub const FAIL_CODE: u32 = 1;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AnswerBody<'a> {
    action_status: &'a str,
    error_info: &'a str,
    error_code: u32,
}

/// The body that reports why a callback was not accepted.
#[must_use]
#[expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "two strings and a number always have a JSON form"
)]
pub fn fail(reason: &str) -> Bytes {
    serde_json::to_vec(&AnswerBody {
        action_status: "FAIL",
        error_info: reason,
        error_code: FAIL_CODE,
    })
    .expect("an answer has a JSON form")
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ok_body_matches_the_vendor_documentation() {
        let answer = AnswerBody {
            action_status: "OK",
            error_info: "",
            error_code: 0,
        };
        assert_eq!(serde_json::to_vec(&answer).unwrap(), OK);
    }

    #[test]
    fn fail_body_contains_the_reason() {
        assert_eq!(
            fail(r#"a "reason""#),
            r#"{"ActionStatus":"FAIL","ErrorInfo":"a \"reason\"","ErrorCode":1}"#
        );
    }
}
