//! Looks at the folder and the disk of a spool, which need not exist yet, without changing them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use nix::sys::statfs::{FsType, NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, statfs};
use nix::unistd::{AccessFlags, access};

use super::config::Config;
use super::files;
use super::fill::{WARN_AT, percent_of};
use super::inspect::SpoolOverview;
use super::quota::{FreeSpace, HEADROOM, Limit, Usage, free_disk};
use crate::event::Seq;

/// SMB versions that `libc` has no name for.
#[cfg(target_os = "linux")]
const CIFS_SUPER_MAGIC: i64 = 0xff53_4d42;
#[cfg(target_os = "linux")]
const SMB2_SUPER_MAGIC: i64 = 0xfe53_4d42;

/// The size of one write, and how far into the file writes go before they begin again at its start, as in SQLite's WAL.
const WRITE_BYTES: usize = 4 << 10;
const FILE_BYTES: u64 = 1 << 20;

/// The most syncs that are measured.
const MAX_SYNCS: usize = 20_000;

/// The folder of a spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolFolder {
    /// The folder, or the nearest folder above it that exists.
    pub existing: PathBuf,
    /// Whether `existing` is the folder itself.
    pub is_there: bool,
}

impl SpoolFolder {
    /// Finds the folder, and checks that files can be created in it.
    ///
    /// # Errors
    /// Something that is no folder is in the way, or this user may not write there.
    pub fn find(config: &Config) -> io::Result<Self> {
        let mut path = config.path.clone();
        // Our files are beside the target of a link.
        if let Ok(target) = fs::read_link(&path) {
            path = files::folder_of(&path).join(target);
        }
        let mut folder = files::folder_of(&path);
        let mut is_there = true;
        loop {
            match fs::metadata(folder) {
                Ok(found) if found.is_dir() => break,
                Ok(_) => return Err(not_a_folder(folder)),
                // A file may be in the place of a folder above it.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
                {
                    is_there = false;
                    folder = files::folder_of(folder);
                }
                Err(error) => {
                    let text = format!("{}: {error}", folder.display());
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
        let rights = AccessFlags::W_OK | AccessFlags::X_OK;
        access(folder, rights).map_err(|error| {
            let text = format!("{} is not writable: {}", folder.display(), error.desc());
            io::Error::new(io::Error::from(error).kind(), text)
        })?;
        Ok(Self {
            existing: folder.to_owned(),
            is_there,
        })
    }

    /// The name of the folder's file system if it is a network's, where SQLite's WAL does not work.
    ///
    /// # Errors
    /// The system does not show it.
    pub fn network_file_system(&self) -> io::Result<Option<&'static str>> {
        #[cfg(target_os = "linux")]
        return Ok(network_file_system(
            statfs(&self.existing)?.filesystem_type(),
        ));
        #[cfg(not(target_os = "linux"))]
        Err(io::ErrorKind::Unsupported.into())
    }

    /// How much more fits, according to the settings, the disk, and `file` if there is one. Its number is that of the
    /// last event up to which every sink has confirmed all: these events are purged when space is needed. Blocks.
    #[must_use]
    pub fn space(&self, config: &Config, file: Option<(&SpoolOverview, Seq)>) -> SpoolSpace {
        let config = Config {
            path: self.existing.join("spool"),
            ..config.clone()
        };
        let usage = file.map_or_else(Usage::default, |(overview, forwarded)| {
            let purgeable = overview.purgeable_bytes(forwarded);
            Usage {
                used_bytes: overview.used_bytes.saturating_sub(purgeable),
                free_page_bytes: overview.free_page_bytes.saturating_add(purgeable),
            }
        });
        let free_disk_bytes = free_disk(&config);
        let free = FreeSpace::of(&config, usage, free_disk_bytes.unwrap_or(u64::MAX));
        let capacity = usage.used_bytes.saturating_add(free.bytes);
        let percent = percent_of(usage.used_bytes, capacity);
        let is_full = free.bytes < HEADROOM;
        SpoolSpace {
            bytes: free.bytes,
            percent,
            free_disk_bytes,
            limit: match free.limit {
                Limit::MaxBytes if is_full => SpaceLimit::MaxBytesReached,
                Limit::MaxBytes if percent >= WARN_AT => SpaceLimit::MaxBytesNearlyReached,
                Limit::MaxBytes => SpaceLimit::MaxBytes,
                Limit::Disk if is_full => SpaceLimit::DiskIsFull,
                Limit::Disk => SpaceLimit::Disk,
            },
        }
    }

    /// Writes and syncs a file without a name for this long; the file is gone afterwards. Blocks.
    ///
    /// # Errors
    /// The file cannot be created, written or synced.
    pub fn sync_latency(&self, duration: Duration) -> io::Result<SyncLatency> {
        let file = unnamed_file(&self.existing)?;
        let page = [0x5a; WRITE_BYTES];
        let began = Instant::now();
        let mut latencies = Vec::new();
        let mut at = 0;
        while latencies.is_empty() || (began.elapsed() < duration && latencies.len() < MAX_SYNCS) {
            let start = Instant::now();
            file.write_all_at(&page, at)?;
            file.sync_data()?;
            latencies.push(start.elapsed());
            at = (at + WRITE_BYTES as u64) % FILE_BYTES;
        }
        latencies.sort_unstable();
        let zero = Duration::ZERO;
        Ok(SyncLatency {
            syncs: latencies.len(),
            median: latencies.get(latencies.len() / 2).copied().unwrap_or(zero),
            longest: latencies.last().copied().unwrap_or(zero),
        })
    }
}

/// How much more fits into a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolSpace {
    /// How many bytes of events.
    pub bytes: u64,
    /// How much is taken by what cannot be purged, in percent.
    pub percent: u64,
    /// The disk's free space; `None` if it cannot be read.
    pub free_disk_bytes: Option<u64>,
    /// What limits it.
    pub limit: SpaceLimit,
}

/// What limits the space of a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpaceLimit {
    /// `spool.max_bytes`.
    MaxBytes,
    /// `spool.max_bytes`, and most of it is taken.
    MaxBytesNearlyReached,
    /// `spool.max_bytes`, and nothing more fits.
    MaxBytesReached,
    /// The disk will be full before that.
    Disk,
    /// The disk is full, but for `spool.reserve`.
    DiskIsFull,
}

/// How long syncs took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncLatency {
    /// How many there were.
    pub syncs: usize,
    /// Half of them were faster.
    pub median: Duration,
    /// The slowest one.
    pub longest: Duration,
}

fn not_a_folder(path: &Path) -> io::Error {
    let text = format!("{} is not a folder", path.display());
    io::Error::new(io::ErrorKind::NotADirectory, text)
}

#[cfg(target_os = "linux")]
fn network_file_system(found: FsType) -> Option<&'static str> {
    let magic = |known: FsType| found.0 == known.0;
    let number =
        |known: i64| u32::try_from(found.0 & 0xffff_ffff).ok() == u32::try_from(known).ok();
    if magic(NFS_SUPER_MAGIC) {
        Some("NFS")
    } else if magic(SMB_SUPER_MAGIC) || number(CIFS_SUPER_MAGIC) || number(SMB2_SUPER_MAGIC) {
        Some("SMB")
    } else {
        None
    }
}

/// A file without a name. If the file system does not support that, the file is unlinked at once.
fn unnamed_file(folder: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    #[cfg(target_os = "linux")]
    match (options.clone())
        .custom_flags(nix::fcntl::OFlag::O_TMPFILE.bits())
        .open(folder)
    {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::Unsupported | io::ErrorKind::IsADirectory
            ) => {}
        opened => return opened,
    }
    let path = folder.join(format!(".recall-relay-check-{}", std::process::id()));
    let file = options.create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use nix::sys::statfs::{EXT4_SUPER_MAGIC, TMPFS_MAGIC};

    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_numbers() {
        let cifs = FsType(CIFS_SUPER_MAGIC as _);
        let smb2 = FsType(SMB2_SUPER_MAGIC as _);
        for (found, name) in [
            (NFS_SUPER_MAGIC, Some("NFS")),
            (SMB_SUPER_MAGIC, Some("SMB")),
            (cifs, Some("SMB")),
            (smb2, Some("SMB")),
            (EXT4_SUPER_MAGIC, None),
            (TMPFS_MAGIC, None),
        ] {
            assert_eq!(network_file_system(found), name, "{found:?}");
        }
    }

    #[test]
    fn looking_at_a_folder_leaves_no_file() {
        let home = tempfile::TempDir::new().unwrap();
        let config = Config {
            path: home.path().join("a/b/spool.db"),
            ..Config::default()
        };
        let folder = SpoolFolder::find(&config).unwrap();
        assert_eq!(folder.existing, home.path());
        assert!(!folder.is_there);
        let latency = folder.sync_latency(Duration::from_millis(20)).unwrap();
        assert!(latency.syncs > 0 && latency.median <= latency.longest);
        let file = unnamed_file(home.path()).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let home = tempfile::TempDir::new().unwrap();
        fs::write(home.path().join("a"), "").unwrap();
        let config = Config {
            path: home.path().join("a/b/spool.db"),
            ..Config::default()
        };
        let error = SpoolFolder::find(&config).unwrap_err();
        assert!(error.to_string().ends_with("/a is not a folder"), "{error}");
    }
}
