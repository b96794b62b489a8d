//! The answers. Only this module chooses HTTP status codes.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use super::auth::AuthError;
use super::durability::{Kept, NotKept};
use crate::callback::{self, ParseError};

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
    TooLarge,
    TooSlow,
    /// The client disconnected while it sent the body.
    Broken,
    /// A recall that is not authentic.
    Refused(AuthError),
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
            Self::Kept(Kept::New) => "accepted",
            Self::Kept(Kept::Repeated) => "repeated",
            Self::Ignored => "ignored",
            Self::Probe => "probe",
            Self::NotFound => "not_found",
            Self::WrongMethod => "wrong_method",
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::Broken => "broken",
            Self::Refused(_) => "refused",
            Self::Rejected(_) => "rejected",
            Self::Dropped(..) => "dropped",
            Self::NotKept(_) => "unavailable",
        }
    }

    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let (status, body) = match self {
            Self::Kept(_) | Self::Ignored | Self::Probe => {
                (StatusCode::OK, Bytes::from_static(callback::OK))
            }
            Self::NotFound => fail(StatusCode::NOT_FOUND, "path is not http.path"),
            Self::WrongMethod => fail(StatusCode::METHOD_NOT_ALLOWED, "method is not POST"),
            Self::TooLarge => fail(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body is larger than http.max_body_bytes",
            ),
            Self::TooSlow => fail(
                StatusCode::REQUEST_TIMEOUT,
                "body did not arrive within http.read_timeout",
            ),
            Self::Broken => fail(
                StatusCode::BAD_REQUEST,
                "connection failed before the body was complete",
            ),
            Self::Refused(refusal) => fail(StatusCode::FORBIDDEN, &refusal.to_string()),
            Self::Rejected(error) => fail(StatusCode::BAD_REQUEST, &error.to_string()),
            Self::Dropped(error, reason) => {
                let text = format!("{error}; callback is not stored: {reason}");
                fail(StatusCode::BAD_REQUEST, &text)
            }
            Self::NotKept(reason) => fail(StatusCode::SERVICE_UNAVAILABLE, &reason.to_string()),
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

fn fail(status: StatusCode, reason: &str) -> (StatusCode, Bytes) {
    (status, callback::fail(reason))
}
