//! What a listener needs of the service behind it.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};

use super::peer::Peer;

/// What answers the requests of a listener.
pub trait Service: Clone + Send + Sync + 'static {
    /// Answers a request.
    fn answer(
        &self,
        request: Request<Incoming>,
        peer: Arc<Peer>,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;

    /// How much the address of a client is trusted.
    fn trust(&self, _: IpAddr) -> Trust {
        Trust::None
    }
}

/// How much the address of a client is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Not at all.
    None,
    /// It is a listed source: its connections are not limited in number.
    Source,
    /// It is a proxy of the operator: as a source, and its connections are not shed.
    Proxy,
}
