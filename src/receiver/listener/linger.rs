//! Closes a connection so that the client can read what was sent last.

use std::time::Duration;

use tokio::io::{AsyncRead, copy, sink};
use tokio::time::timeout;

/// The vendor waits so long for an answer.
const LINGER: Duration = Duration::from_secs(2);

/// Reads, and drops, what a client still sends after the relay has closed its side early. If the connection were
/// dropped at once, the kernel would reset it, and the client might lose the answer.
pub(super) async fn linger(stream: &mut (impl AsyncRead + Unpin)) {
    let _ = timeout(LINGER, copy(stream, &mut sink())).await;
}
