//! How much more the spool may take: `spool.max_bytes`, and the disk less `spool.reserve`.

use nix::sys::statvfs::statvfs;

use super::{Config, files};

/// What the file uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) used_bytes: u64,
    pub(super) free_page_bytes: u64,
}

/// What limits the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    MaxBytes,
    Disk,
}

/// Bytes of events that fit, and what sets the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) bytes: u64,
    pub(super) limit: Limit,
}

impl Room {
    /// Looks at the disk. A disk that does not tell how full it is counts as having room: SQLite will
    /// say when it has not.
    pub(super) fn look(config: &Config, usage: Usage) -> Self {
        let free_disk = statvfs(files::folder_of(&config.path)).map_or(u64::MAX, |disk| {
            disk.blocks_available().saturating_mul(disk.fragment_size())
        });
        Self::of(config, usage, free_disk)
    }

    fn of(config: &Config, usage: Usage, free_disk: u64) -> Self {
        let below_max = config.max_bytes.0.saturating_sub(usage.used_bytes);
        let on_disk = free_disk
            .saturating_add(usage.free_page_bytes)
            .saturating_sub(config.reserve.0);
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

    /// Why there is no more of it, for people.
    pub(super) fn explain(self, config: &Config) -> String {
        match self.limit {
            Limit::MaxBytes => format!(
                "events that are not forwarded yet reach spool.max_bytes ({})",
                config.max_bytes
            ),
            Limit::Disk => format!("the disk is full up to spool.reserve ({})", config.reserve),
        }
    }
}

/// What an event of this many bytes takes in the file: a row's overhead, and half-filled pages.
pub(super) const fn cost(bytes: usize) -> u64 {
    let bytes = bytes as u64;
    bytes + bytes / 8 + 64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::Size;

    fn room(used: u64, free_pages: u64, disk: u64) -> Room {
        let config = Config {
            max_bytes: Size(1000),
            reserve: Size(100),
            ..Config::default()
        };
        let usage = Usage {
            used_bytes: used,
            free_page_bytes: free_pages,
        };
        Room::of(&config, usage, disk)
    }

    #[test]
    fn the_smaller_of_both_limits_counts() {
        assert_eq!(
            room(400, 0, 10_000),
            Room {
                bytes: 600,
                limit: Limit::MaxBytes
            }
        );
        assert_eq!(
            room(400, 0, 300),
            Room {
                bytes: 200,
                limit: Limit::Disk
            }
        );
        assert_eq!(room(400, 0, 700).limit, Limit::MaxBytes, "the same: ours");
        assert_eq!(room(1200, 0, 10_000).bytes, 0);
        assert_eq!(room(0, 0, 50).bytes, 0);
    }

    #[test]
    fn an_event_takes_more_than_its_bytes() {
        assert_eq!([0, 800, 8000].map(cost), [64, 964, 9064]);
    }

    #[test]
    fn free_pages_of_the_file_count_as_room() {
        assert_eq!(room(400, 250, 50).bytes, 200);
    }
}
