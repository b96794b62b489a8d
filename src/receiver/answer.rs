//! The answers. Only this module chooses HTTP status codes.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use super::auth::AuthError;
use super::durability::{Kept, NotKept};
use crate::callback::{self, ParseError};
use crate::upstream::{OnFailure, UpstreamError};

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A recall whose event is durable.
    Kept(Kept),
    /// Any other command.
    Ignored,
    /// The console's probe.
    Probe,
    NotFound,
    WrongMethod,
    /// The body's length is unknown: HTTP/1.0 without `Content-Length`.
    NoLength,
    TooLarge,
    TooSlow,
    /// The client disconnected while it sent the body.
    Broken,
    /// The client disconnected before its event was on disk. Nothing is answered.
    Abandoned,
    /// Handed on to the backend, which answered.
    HandedOn,
    /// The backend did not answer, or was not asked.
    NotHandedOn(UpstreamError, OnFailure),
    /// The client disconnected before the backend answered.
    Disconnected,
    /// A recall that is not authentic.
    Refused(AuthError),
    /// Something else for the backend, from a source that is not allowed.
    Barred(AuthError),
    /// A recall that could not be parsed, and was stored as a dead letter.
    Rejected(ParseError),
    /// A recall that could not be parsed and was not stored, and why.
    Dropped(ParseError, NotKept),
    /// An event that was not stored.
    NotKept(NotKept),
}

impl Outcome {
    /// The outcome's label in metrics.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Kept(Kept { is_new: true, .. }) => "accepted",
            Self::Kept(Kept { is_new: false, .. }) => "repeated",
            Self::Ignored => "ignored",
            Self::Probe => "probe",
            Self::NotFound => "not_found",
            Self::WrongMethod => "wrong_method",
            Self::NoLength => "no_length",
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::Broken => "broken",
            Self::Abandoned => "abandoned",
            Self::HandedOn => "handed_on",
            // Not "abandoned", which is a lost recall: anyone can send another command and disconnect.
            Self::NotHandedOn(..) | Self::Disconnected => "not_handed_on",
            Self::Refused(_) => "refused",
            Self::Barred(_) => "not_allowed",
            Self::Rejected(_) => "rejected",
            Self::Dropped(..) => "dropped",
            Self::NotKept(_) => "unavailable",
        }
    }

    /// Whether the cause is the relay's own.
    pub(super) const fn is_own_failure(&self) -> bool {
        matches!(self, Self::Abandoned | Self::Dropped(..) | Self::NotKept(_))
    }

    /// Whether a recall with this outcome is lost: it was neither accepted nor stored as a dead letter.
    pub(super) const fn is_loss(&self) -> bool {
        match self {
            Self::Kept(_)
            | Self::Ignored
            | Self::Probe
            | Self::HandedOn
            | Self::NotHandedOn(..)
            | Self::Disconnected
            | Self::Barred(_)
            | Self::Rejected(_) => false,
            Self::NotFound
            | Self::WrongMethod
            | Self::NoLength
            | Self::TooLarge
            | Self::TooSlow
            | Self::Broken
            | Self::Abandoned
            | Self::Refused(_)
            | Self::Dropped(..)
            | Self::NotKept(_) => true,
        }
    }

    /// What an operator can do if recalls have this outcome.
    pub(super) const fn advice(&self) -> &'static str {
        match self {
            Self::NotFound => "set http.path to the path of the console's callback URL",
            Self::WrongMethod => "have the proxy in front pass POST requests on unchanged",
            Self::NoLength => "have the proxy in front send Content-Length, or speak HTTP/1.1",
            Self::TooLarge => "raise http.max_body_bytes",
            Self::TooSlow => "check the network and the proxy in front, or raise http.read_timeout",
            Self::Broken => "check the network and the proxy in front",
            Self::Abandoned => "use a faster disk, or repair it: the vendor waits 2 s",
            Self::Refused(refusal) => refusal.advice(),
            Self::Rejected(_) => "read the dead letters",
            Self::Dropped(..) => {
                "stop the relay and remove dead letters from the spool, or raise spool.max_dead_letter_bytes"
            }
            Self::NotKept(NotKept::Unavailable(_, advice)) => advice,
            Self::NotKept(NotKept::DeadLettersFull(_)) => "raise spool.max_dead_letter_bytes",
            _ => "",
        }
    }

    /// The status and the reason of an answer other than OK.
    pub(super) fn failure(&self) -> Option<(StatusCode, String)> {
        let (status, reason) = match self {
            Self::Kept(_)
            | Self::Ignored
            | Self::Probe
            | Self::HandedOn
            | Self::Disconnected
            | Self::NotHandedOn(_, OnFailure::Ok) => return None,
            Self::NotHandedOn(error, OnFailure::Error) => {
                let status = match error {
                    UpstreamError::Late => StatusCode::GATEWAY_TIMEOUT,
                    _ => StatusCode::BAD_GATEWAY,
                };
                return Some((status, error.to_string()));
            }
            Self::NotFound => (StatusCode::NOT_FOUND, "path is not http.path"),
            Self::WrongMethod => (StatusCode::METHOD_NOT_ALLOWED, "method is not POST"),
            Self::NoLength => (StatusCode::LENGTH_REQUIRED, "request has no Content-Length"),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body is larger than http.max_body_bytes",
            ),
            Self::TooSlow => (
                StatusCode::REQUEST_TIMEOUT,
                "body did not arrive within http.read_timeout",
            ),
            Self::Broken => (
                StatusCode::BAD_REQUEST,
                "connection failed before the body was complete",
            ),
            Self::Abandoned => (
                StatusCode::REQUEST_TIMEOUT,
                "client disconnected before the event was on disk",
            ),
            Self::Refused(refusal) | Self::Barred(refusal) => {
                return Some((StatusCode::FORBIDDEN, refusal.to_string()));
            }
            Self::Rejected(error) => return Some((StatusCode::BAD_REQUEST, error.to_string())),
            Self::Dropped(error, reason) => {
                let reason = format!("{error}; callback is not stored: {reason}");
                return Some((StatusCode::BAD_REQUEST, reason));
            }
            Self::NotKept(reason) => {
                return Some((StatusCode::SERVICE_UNAVAILABLE, reason.to_string()));
            }
        };
        Some((status, reason.to_owned()))
    }

    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let (status, body) = match self.failure() {
            None => (StatusCode::OK, Bytes::from_static(callback::OK)),
            Some((status, reason)) => (status, callback::fail(&reason)),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self {
            Self::WrongMethod => {
                headers.insert(ALLOW, HeaderValue::from_static("POST"));
            }
            Self::NotKept(_) => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}
