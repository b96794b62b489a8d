//! A callback to hand on.

use std::net::IpAddr;

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

impl Outgoing {
    /// Memory for `reserved` bytes is reserved already.
    pub(super) fn new(
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
        reserved: usize,
        reserve: Reserve,
    ) -> Self {
        let length = body.len();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        request.headers_mut().insert(CONTENT_LENGTH, length.into());
        Self {
            request,
            reserved,
            reserve,
        }
    }
}

/// The headers of a callback, and who has sent them.
#[derive(Debug)]
pub struct ReceivedHeaders {
    /// The headers.
    pub headers: HeaderMap,
    /// The peer of the connection.
    pub peer: IpAddr,
    /// Whether the peer is a proxy whose headers about the client are trusted.
    pub is_proxy: bool,
}

impl ReceivedHeaders {
    /// The memory that the headers take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let headers = self.headers.iter();
        headers
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum()
    }
}
