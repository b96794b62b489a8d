//! How many files the process may have open: each connection is one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// What else is open: the spool's files, operators, brokers, the libraries' own.
const RESERVE: u64 = 256;

/// Raises the limit as far as the system lets us, and says so where it is still too low for as many
/// connections as are configured: those above it would wait for nothing in the kernel's backlog.
pub(super) fn raise_nofile_limit(connections: usize) {
    let wanted = (connections as u64).saturating_add(RESERVE);
    match raise() {
        Ok(limit) if limit < wanted => warn!(
            limit,
            wanted, "the limit of open files (RLIMIT_NOFILE) is too low for http.max_connections"
        ),
        Ok(_) => {}
        Err(error) => warn!(%error, "could not raise the limit of open files"),
    }
}

/// Raises the soft limit to the hard one; returns what it is then.
fn raise() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}
