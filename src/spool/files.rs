//! The spool's folder and files: their names and permissions, and the lock.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use super::watermark::Watermark;

/// The lock that excludes a second process; it is held until it is dropped. Its file contains the high-water mark,
/// followed by [`DAMAGED`] if the next start has to salvage.
///
/// It is a separate file because closing another handle to the database file would drop SQLite's locks.
#[derive(Debug)]
pub(super) struct Lock(File);

/// How often to try again to take the lock.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// Follows the high-water mark of a damaged spool.
const DAMAGED: &[u8] = b"damaged\n";

impl Lock {
    /// The high-water mark; `None` if there is none or it is damaged itself.
    pub(super) fn watermark(&self) -> io::Result<Option<Watermark>> {
        let mut line = [0; Watermark::LENGTH];
        let length = self.read(&mut line, 0)?;
        let line = line
            .get(..length)
            .and_then(|line| str::from_utf8(line).ok());
        Ok(line.and_then(Watermark::decode))
    }

    /// Writes the high-water mark. It is not synced.
    pub(super) fn write_watermark(&self, watermark: Watermark) -> io::Result<()> {
        self.0.write_all_at(watermark.encode().as_bytes(), 0)
    }

    /// Whether [`Self::mark_damaged`] was called since the last salvage.
    pub(super) fn is_damaged(&self) -> io::Result<bool> {
        let mut mark = [0; DAMAGED.len()];
        self.read(&mut mark, Watermark::LENGTH as u64)?;
        Ok(mark == DAMAGED)
    }

    /// Makes the next start salvage the database.
    pub(super) fn mark_damaged(&self) -> io::Result<()> {
        self.0.write_all_at(DAMAGED, Watermark::LENGTH as u64)?;
        self.0.sync_data()
    }

    /// Removes the mark of damage: the database was salvaged.
    pub(super) fn clear_damaged(&self) -> io::Result<()> {
        self.0
            .write_all_at(&[0; DAMAGED.len()], Watermark::LENGTH as u64)
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut length = 0;
        while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, at + length as u64)? {
                0 => break,
                read => length += read,
            }
        }
        Ok(length)
    }
}

/// Follows symbolic links to the database file, which need not exist: SQLite puts its WAL beside the target of a
/// link, so our other files must be there, too. Creates the folder if it is missing.
pub(super) fn resolve(database: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(database) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        resolved => return resolved,
    }
    let folder = folder_of(database);
    if let Ok(target) = fs::read_link(database) {
        return resolve(&folder.join(target));
    }
    create_folder(folder)?;
    let name = database.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(fs::canonicalize(folder)?.join(name))
}

/// Creates the folder and all missing folders above it (mode 0700), and syncs their parents, so that a power cut
/// cannot remove the folder of a synced file.
fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(Path::new(""));
    create_folder(parent)?;
    // Recursive, because then it is no error if another process creates the folder at the same time.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    sync_folder_of(folder)
}

/// Takes the lock beside the database file; waits at most `timeout` while another process holds it. Blocks.
///
/// # Errors
/// `WouldBlock` if another process still holds it.
pub(super) fn lock(database: &Path, timeout: Duration) -> io::Result<Lock> {
    let deadline = Instant::now() + timeout;
    let file = open_private(&beside(database, ".lock"))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                thread::park_timeout(LOCK_RETRY);
            }
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Creates the database file (mode 0600) if there is none; SQLite gives its other files the same mode.
pub(super) fn create_database(path: &Path) -> io::Result<()> {
    if fs::exists(path)? {
        return Ok(());
    }
    open_private(path)?.sync_all()?;
    sync_folder_of(path)
}

/// The path of a file beside the database: the suffix of SQLite's WAL is `-wal`, for example.
pub(super) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

/// The path of SQLite's WAL.
pub(super) fn wal(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

/// The size of SQLite's WAL in bytes.
pub(super) fn wal_size(database: &Path) -> u64 {
    fs::metadata(wal(database)).map_or(0, |wal| wal.len())
}

/// Removes a file if it exists.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens one of our own files, or creates it with access for its owner only. Does not follow a symbolic link: it
/// would lead to a file that is not ours.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
}

/// The folder of a file.
pub(super) fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().unwrap_or(Path::new(""));
    if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    }
}

/// Syncs the names in the file's folder to disk.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn created_folders_are_private_and_never_replace_a_file() {
        let home = TempDir::new().unwrap();
        let folder = home.path().join("a/b");
        create_folder(&folder).unwrap();
        create_folder(&folder).unwrap();
        for made in [folder.parent().unwrap(), &folder] {
            let mode = fs::metadata(made).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", made.display());
        }
        let file = folder.join("file");
        fs::write(&file, "").unwrap();
        create_folder(&file).unwrap_err();
        create_folder(&file.join("c")).unwrap_err();
    }

    #[test]
    fn removing_a_missing_file_succeeds_but_a_folder_fails() {
        let home = TempDir::new().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        remove(&file).unwrap();
        remove(&file).unwrap();
        remove(home.path()).unwrap_err();
    }

    #[test]
    fn resolve_follows_symbolic_links_to_one_path() {
        let home = TempDir::new().unwrap();
        let home = fs::canonicalize(home.path()).unwrap();
        let target = home.join("disk/spool.db");
        for (link, to) in [
            ("absolute.db", target.as_path()),
            ("relative.db", Path::new("disk/spool.db")),
            ("again.db", Path::new("relative.db")),
        ] {
            symlink(to, home.join(link)).unwrap();
        }
        for exists in [false, true] {
            for link in ["absolute.db", "relative.db", "again.db", "disk/spool.db"] {
                assert_eq!(
                    resolve(&home.join(link)).unwrap(),
                    target,
                    "{link}, {exists}"
                );
            }
            fs::write(&target, "").unwrap();
        }
    }

    #[test]
    fn the_lock_file_is_not_opened_through_a_link() {
        let home = TempDir::new().unwrap();
        let (database, victim) = (home.path().join("spool.db"), home.path().join("victim"));
        fs::write(&victim, "diary").unwrap();
        symlink(&victim, beside(&database, ".lock")).unwrap();
        lock(&database, Duration::ZERO).unwrap_err();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "diary");
    }

    #[test]
    fn the_damage_mark_persists_until_cleared() {
        let home = TempDir::new().unwrap();
        let lock = lock(&home.path().join("spool.db"), Duration::ZERO).unwrap();
        assert_eq!(lock.watermark().unwrap(), None);
        let watermark = Watermark::default();
        for cleared in [false, true, false] {
            assert!(!lock.is_damaged().unwrap());
            lock.mark_damaged().unwrap();
            lock.write_watermark(watermark).unwrap();
            assert!(lock.is_damaged().unwrap(), "{cleared}");
            assert_eq!(lock.watermark().unwrap(), Some(watermark));
            lock.clear_damaged().unwrap();
        }
    }
}
