//! The limit of open files: each connection uses one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Files that are open besides callback connections: the spool's files, connections of operators and to brokers, and
/// those of the libraries.
const RESERVE: u64 = 256;

/// Raises the limit as far as the system allows, and returns how many callback connections it leaves: at most
/// `wanted`. Logs a warning if they are fewer. `to_backend` is the number of exchanges with a backend; each may have a
/// connection, and another that is being opened.
///
/// More connections would take the descriptors that the spool and the sinks need. The listener could then not accept
/// any connection, so it could not shed others either.
pub(super) fn raise_nofile_limit(wanted: usize, to_backend: usize) -> usize {
    let limit = match raise() {
        Ok(limit) => limit,
        Err(error) => {
            warn!(
                code = "nofile_limit_not_raised", %error,
                "could not raise the limit of open files (RLIMIT_NOFILE); raise it where the relay is started"
            );
            return wanted;
        }
    };
    let used = connections_within(limit, to_backend).min(wanted);
    if used < wanted {
        warn!(
            code = "nofile_limit_low",
            limit,
            max_connections = wanted,
            used,
            needed = files(wanted, to_backend),
            "limit of open files (RLIMIT_NOFILE) is too low for http.max_connections: fewer connections are used \
             until the next start; raise the hard limit to what is needed, or lower http.max_connections"
        );
    }
    used
}

/// How many files may be open with this many callback connections.
fn files(connections: usize, to_backend: usize) -> u64 {
    (connections as u64)
        .saturating_add(2 * to_backend as u64)
        .saturating_add(RESERVE)
}

/// How many callback connections a limit of open files leaves; one even if it leaves none.
fn connections_within(limit: u64, to_backend: usize) -> usize {
    let left = limit.saturating_sub(files(0, to_backend)).max(1);
    usize::try_from(left).unwrap_or(usize::MAX)
}

/// Raises the soft limit to the hard limit and returns it.
fn raise() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_what_the_limit_leaves() {
        for (limit, to_backend, connections) in [
            (1280, 0, 1024),
            (1279, 0, 1023),
            (1280, 256, 512),
            (258, 0, 2),
            (257, 0, 1),
            (256, 0, 1),
            (0, 256, 1),
        ] {
            assert_eq!(
                connections_within(limit, to_backend),
                connections,
                "{limit}"
            );
        }
        // RLIM_INFINITY.
        assert!(connections_within(u64::MAX, 256) > 4_294_967_295);
    }
}
