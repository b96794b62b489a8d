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
    #[serde(deserialize_with = "setting::text")]
    pub path: PathBuf,
    /// If the used pages reach this size, forwarded events are purged; if that is not enough, callbacks are
    /// refused. If it is too small, a long outage of a broker fills it; if it is too large, the disk is full first.
    pub max_bytes: Size,
    /// Disk space that is left alone: free space and the file's free pages together never go below.
    pub reserve: Size,
    /// How long events stay after they were appended. Events that are not forwarded stay longer; with zero, events
    /// are purged once they are forwarded.
    pub retention: Period,
    /// How many of the latest ids are remembered to recognise a repeated callback. 40 bytes of memory
    /// each.
    #[serde(deserialize_with = "setting::text")]
    pub recent_ids: usize,
    /// How many callbacks may wait for a commit; more are refused. Each holds its body in memory.
    #[serde(deserialize_with = "setting::text")]
    pub max_waiting: usize,
    /// Bytes of dead letters: of rejected callbacks that are not forwarded yet, and of the table of events that
    /// were accepted nowhere. Beyond it a rejected callback is not kept, and an event that the dead letters refuse
    /// too counts as not forwarded.
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
