//! Errors, by what can be done about them.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::task::JoinError;

use crate::sink::{Refusal, SessionError};

/// What a record's error says about the record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// It, or one in its batch, will never be taken.
    Refused(&'static str),
    /// Another one failed.
    Consequence,
    /// It may be taken later.
    Unavailable,
}

pub(super) fn classify(code: RDKafkaErrorCode) -> ErrorClass {
    use RDKafkaErrorCode as Code;
    match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => {
            ErrorClass::Refused("too_large")
        }
        Code::InvalidRecord => ErrorClass::Refused("invalid"),
        Code::Fatal | Code::GaplessGuarantee | Code::PurgeQueue | Code::PurgeInflight => {
            ErrorClass::Consequence
        }
        _ => ErrorClass::Unavailable,
    }
}

/// Whether a topic is closed to us until somebody changes that. One that is gone is made again by the next
/// session.
pub(super) const fn is_missing_right(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::TopicAuthorizationFailed)
}

/// What librdkafka says of a record that it does not even take, if that is final.
pub(super) fn refusal_at_once(error: &KafkaError) -> Option<Refusal> {
    match classify(error.rdkafka_error_code()?) {
        ErrorClass::Refused(reason) => Some(Refusal {
            reason,
            detail: error.to_string(),
        }),
        ErrorClass::Consequence | ErrorClass::Unavailable => None,
    }
}

/// A thread for calls that block is not to be had any more.
pub(super) fn stopping(error: JoinError) -> SessionError {
    SessionError::unavailable("the runtime is stopping", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_by_what_can_be_done() {
        use RDKafkaErrorCode as Code;
        for code in [Code::MessageSizeTooLarge, Code::InvalidRecord] {
            assert!(matches!(classify(code), ErrorClass::Refused(_)), "{code}");
        }
        for code in [
            Code::TopicAuthorizationFailed,
            Code::UnknownTopic,
            Code::NotEnoughReplicas,
        ] {
            assert_eq!(classify(code), ErrorClass::Unavailable, "{code}");
        }
    }
}
