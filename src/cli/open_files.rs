//! The limit of open files: each connection uses one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Files that are open besides callback connections: the spool's files, connections of operators and to brokers, and
/// those of the libraries.
const RESERVE: u64 = 256;

/// Raises the limit as far as the system allows. Logs a warning if it is still too low for the configured number of
/// connections: further connections would wait in the kernel's backlog until their clients give up. `to_backend` is the
/// number of exchanges with a backend; each may have a connection, and another that is being opened.
pub(super) fn raise_nofile_limit(connections: usize, to_backend: usize) {
    let wanted = (connections as u64 + 2 * to_backend as u64).saturating_add(RESERVE);
    match raise() {
        Ok(limit) if limit < wanted => warn!(
            code = "nofile_limit_low",
            limit,
            wanted,
            "limit of open files (RLIMIT_NOFILE) is too low for http.max_connections: further connections will wait; \
             raise the hard limit, or lower http.max_connections"
        ),
        Ok(_) => {}
        Err(error) => warn!(
            code = "nofile_limit_not_raised", %error,
            "could not raise the limit of open files (RLIMIT_NOFILE); raise it where the relay is started"
        ),
    }
}

/// Raises the soft limit to the hard limit and returns it.
fn raise() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}
