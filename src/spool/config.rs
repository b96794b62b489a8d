//! Settings of the spool.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::setting::{self, Period, Size};

/// Settings of the spool.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The database file; it must be on a local disk. Its folder is created if it is missing.
    #[serde(deserialize_with = "setting::path")]
    pub path: PathBuf,
    /// When the used pages reach this size, forwarded events are purged; if that is not enough, callbacks are
    /// refused. If it is too small, a long outage of a broker fills it; if it is too large, the disk fills up first.
    pub max_bytes: Size,
    /// Disk space that the spool leaves unused: free space and the file's free pages together never fall below it.
    pub reserve: Size,
    /// How long events are kept after they were appended. Unforwarded events are kept longer; if this is zero,
    /// events are purged when they have been forwarded.
    pub retention: Period,
    /// How many of the latest ids are kept in memory to recognise a repeated callback. Each takes 40 bytes.
    #[serde(deserialize_with = "setting::number::<_, _, 0, 100_000_000>")]
    pub recent_ids: usize,
    /// How many callbacks may wait for a commit; further ones are refused. Each keeps its body in memory.
    #[serde(deserialize_with = "setting::number::<_, _, 1, 1_000_000>")]
    pub max_waiting: usize,
    /// The maximum size of dead letters: rejected callbacks that are not forwarded yet, and the table of events that
    /// no topic accepted. If it is reached, a rejected callback is not stored, and an event that the dead-letter
    /// topic refuses, too, counts as not forwarded.
    pub max_dead_letter_bytes: Size,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: "data/spool.db".into(),
            max_bytes: Size(1 << 30),
            reserve: Size(64 << 20),
            retention: Period(Duration::from_secs(24 * 60 * 60)),
            recent_ids: 100_000,
            max_waiting: 4096,
            max_dead_letter_bytes: Size(64 << 20),
        }
    }
}
