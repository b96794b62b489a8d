//! The quota: how many bytes of events fit into `spool.max_bytes`, and onto the disk minus `spool.reserve`.

use nix::sys::statvfs::statvfs;
use rusqlite::Connection;

use super::config::Config;
use super::files;
use super::schema::PAGE_SIZE;

/// If fewer bytes than this are free, the published state is full, so that it does not flap with the size of each
/// callback. A small event may still fit.
pub(super) const HEADROOM: u64 = 64 << 10;

/// How many bytes must be free before a full spool counts as free again, so that the state does not flap with every
/// event that is forwarded.
pub(super) const ENOUGH: u64 = 2 * HEADROOM;

/// Bytes of the WAL per byte of an event, and per commit: SQLite writes whole pages to the WAL before it uses a free
/// page of the file.
const WAL_COST: u64 = 2;
const COMMIT_COST: u64 = 64 << 10;

/// What the file uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) used_bytes: u64,
    pub(super) free_page_bytes: u64,
}

impl Usage {
    /// Reads the usage from the file, as the current transaction sees it.
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let pragma = |name| {
            let mut pragma = connection.prepare_cached(name)?;
            pragma.query_row([], |row| row.get::<_, u64>(0))
        };
        let size = PAGE_SIZE as u64;
        let free = pragma("PRAGMA freelist_count")?;
        let all = pragma("PRAGMA page_count")?;
        Ok(Self {
            used_bytes: all.saturating_sub(free) * size,
            free_page_bytes: free * size,
        })
    }
}

/// What limits the free space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    MaxBytes,
    Disk,
}

/// How many bytes of events fit, and what limits them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FreeSpace {
    pub(super) bytes: u64,
    pub(super) limit: Limit,
}

impl FreeSpace {
    /// Measures the free space, including that of the disk.
    pub(super) fn measure(config: &Config, usage: Usage) -> Self {
        // No limit if it cannot be read: SQLite reports when the disk is full.
        Self::of(config, usage, free_disk(config).unwrap_or(u64::MAX))
    }

    /// The free space if the disk has `free_disk` bytes free.
    pub(super) fn of(config: &Config, usage: Usage, free_disk: u64) -> Self {
        let below_max = config.max_bytes.0.saturating_sub(usage.used_bytes);
        let on_disk = free_disk
            .saturating_add(usage.free_page_bytes)
            .saturating_sub(config.reserve.0)
            .min(free_disk.saturating_sub(COMMIT_COST) / WAL_COST);
        if on_disk < below_max {
            Self {
                bytes: on_disk,
                limit: Limit::Disk,
            }
        } else {
            Self {
                bytes: below_max,
                limit: Limit::MaxBytes,
            }
        }
    }

    /// Explains the limit for people.
    pub(super) fn explain(self, config: &Config) -> String {
        match self.limit {
            Limit::MaxBytes => format!(
                "unforwarded events and dead letters have reached spool.max_bytes ({})",
                config.max_bytes
            ),
            Limit::Disk => format!(
                "the disk's free space is down to spool.reserve ({})",
                config.reserve
            ),
        }
    }
}

/// Free bytes of the disk; `None` if they cannot be read.
pub(super) fn free_disk(config: &Config) -> Option<u64> {
    let disk = statvfs(files::folder_of(&config.path)).ok()?;
    Some(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// How many bytes an event of this size takes in the file, with a row's overhead and partly filled pages.
pub(super) const fn cost(bytes: usize) -> u64 {
    let bytes = bytes as u64;
    bytes + bytes / 8 + 64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::Size;

    /// All in KiB: the spool may take 1000 and uses `used`; the disk has a reserve of 100 and `disk` free.
    fn free_space(used: u64, free_pages: u64, disk: u64) -> (u64, Limit) {
        let config = Config {
            max_bytes: Size(1000 << 10),
            reserve: Size(100 << 10),
            ..Config::default()
        };
        let usage = Usage {
            used_bytes: used << 10,
            free_page_bytes: free_pages << 10,
        };
        let free = FreeSpace::of(&config, usage, disk << 10);
        (free.bytes >> 10, free.limit)
    }

    #[test]
    fn the_smaller_limit_applies() {
        assert_eq!(free_space(400, 0, 10_000), (600, Limit::MaxBytes));
        assert_eq!(free_space(400, 0, 150), (43, Limit::Disk));
        assert_eq!(
            free_space(900, 0, 264),
            (100, Limit::MaxBytes),
            "the same: ours"
        );
        assert_eq!(free_space(1200, 0, 10_000), (0, Limit::MaxBytes));
        assert_eq!(free_space(0, 0, 50), (0, Limit::Disk));
    }

    #[test]
    fn free_pages_of_the_file_count_as_free_space() {
        assert_eq!(free_space(400, 0, 120).0, 20);
        assert_eq!(free_space(400, 5, 120).0, 25);
    }

    #[test]
    fn free_pages_need_disk_space_for_the_wal() {
        assert_eq!(free_space(400, 500, 120).0, 28);
        assert_eq!(free_space(400, 500, 64).0, 0);
    }

    #[test]
    fn the_cost_of_an_event_includes_its_overhead() {
        assert_eq!([0, 800, 8000].map(cost), [64, 964, 9064]);
    }
}
