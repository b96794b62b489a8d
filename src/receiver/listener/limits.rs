//! What clients of a listener may do.

use crate::setting::Timeout;

/// The limits of a listener and of each of its connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of open connections.
    pub connections: usize,
    /// Maximum number of open connections of one source; 0 is no limit.
    pub connections_per_source: usize,
    /// How long a request's head may take to arrive. For the first request, this starts when the connection opens.
    pub read_timeout: Timeout,
    /// How long a connection that is not shed may stay open without another request. Others: `read_timeout`.
    pub idle_timeout: Timeout,
}
