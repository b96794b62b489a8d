//! Classifies errors by how they can be handled.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::task::JoinError;

use super::reason::Specificity;
use crate::sink::{Refusal, SessionError};

/// The class of a record's error.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// This record, or another in its batch, will never be accepted.
    Refused(&'static str),
    /// The record failed because another one failed.
    Consequence,
    /// The record may be accepted later.
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

/// Whether access to the topic is denied until somebody grants it. A missing topic does not count: the next session
/// creates it.
pub(super) const fn is_missing_right(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::TopicAuthorizationFailed)
}

/// How specific an error about a broker is. For TLS, login and name resolution librdkafka has codes of their own.
pub(super) const fn specificity(code: RDKafkaErrorCode) -> Specificity {
    match code {
        RDKafkaErrorCode::AllBrokersDown => Specificity::Symptom,
        RDKafkaErrorCode::BrokerTransportFailure
        | RDKafkaErrorCode::OperationTimedOut
        | RDKafkaErrorCode::RequestTimedOut
        | RDKafkaErrorCode::TimedOutQueue => Specificity::Unreachable,
        _ => Specificity::Cause,
    }
}

/// The refusal, if librdkafka did not accept a record into its queue and never will.
pub(super) fn refusal_at_once(error: &KafkaError) -> Option<Refusal> {
    match classify(error.rdkafka_error_code()?) {
        ErrorClass::Refused(reason) => Some(Refusal {
            reason,
            detail: error.to_string(),
        }),
        ErrorClass::Consequence | ErrorClass::Unavailable => None,
    }
}

/// The error if a blocking call was not run because the runtime is shutting down.
pub(super) fn stopping(error: JoinError) -> SessionError {
    SessionError::unavailable("relay is stopping", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classifies_errors_as_refused_or_unavailable() {
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
