//! The spool's folder, its lock, and who may read them.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The lock that keeps a second process out; held until dropped.
///
/// A file of its own: opening and closing the database file by other means would drop SQLite's locks.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Makes the folder (0700) and every folder above it that is missing, and syncs their parents, so that
/// a power cut does not take the folder away from under a synced file.
pub(super) fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(Path::new(""));
    create_folder(parent)?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_folder(parent)
}

/// Takes the lock beside the database file.
///
/// # Errors
/// `WouldBlock` where another process holds it.
pub(super) fn lock(database: &Path) -> io::Result<Lock> {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    let file = open_private(&PathBuf::from(path))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Makes the database file (0600) where there is none; SQLite gives its other files the same mode.
pub(super) fn create_database(path: &Path) -> io::Result<()> {
    if fs::exists(path)? {
        return Ok(());
    }
    open_private(path)?.sync_all()?;
    sync_folder(path.parent().unwrap_or(Path::new("")))
}

fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    File::open(folder)?.sync_all()
}
