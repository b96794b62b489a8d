//! What a connection may do.

use crate::setting::Timeout;

/// The limits of each connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of open connections.
    pub connections: usize,
    /// How long a request's head may take to arrive. For the first request, this starts when the connection opens.
    pub read_timeout: Timeout,
    /// How long a connection may stay open without another request.
    pub idle_timeout: Timeout,
}
