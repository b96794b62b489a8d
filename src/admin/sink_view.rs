//! A sink as operators see it.

use crate::forwarder::SinkState;
use crate::spool::Cursor;

/// A sink's state and cursor.
#[derive(Debug, Clone)]
pub struct SinkView {
    /// Its state.
    pub state: SinkState,
    /// Its cursor.
    pub cursor: Cursor,
}
