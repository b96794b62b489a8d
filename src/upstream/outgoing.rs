//! A callback to hand on.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_LENGTH, HeaderMap};
use hyper::{Method, Request, Uri};

/// Reserves memory for a number of bytes in all. It stays reserved until this is dropped.
pub type Reserve = Box<dyn FnMut(usize) -> bool + Send>;

/// A callback to hand on.
#[expect(missing_debug_implementations, reason = "a function has none")]
pub struct Outgoing {
    pub(super) request: Request<Full<Bytes>>,
    /// The bytes that are reserved.
    pub(super) reserved: usize,
    pub(super) reserve: Reserve,
}

/// The head of a callback to hand on.
#[derive(Debug)]
pub struct OutgoingHead {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
}

impl OutgoingHead {
    /// The memory that it takes, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let headers = self.headers.iter();
        let headers: usize = headers
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        headers
            + self
                .uri
                .path_and_query()
                .map_or(0, |target| target.as_str().len())
    }

    /// Adds the body, for which memory is reserved already.
    #[must_use]
    pub fn with_body(self, body: Bytes, reserved: usize, reserve: Reserve) -> Outgoing {
        let length = body.len();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request.headers_mut().insert(CONTENT_LENGTH, length.into());
        Outgoing {
            request,
            reserved,
            reserve,
        }
    }
}
