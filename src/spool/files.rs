//! The spool's folder, its files and their names, its lock, and who may read them.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::note::Note;

/// The lock that keeps a second process out, held until dropped; and the note in it.
///
/// A file of its own: opening and closing the database file by other means would drop SQLite's locks.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    /// Whether this process has found damage: no later note takes that back.
    damaged: Mutex<bool>,
}

impl Lock {
    /// The note; none where there is none, or it is damaged itself.
    pub(super) fn note(&self) -> io::Result<Option<Note>> {
        Note::read(&self.file)
    }

    /// Writes the note. It is not synced.
    pub(super) fn write_note(&self, note: Note) -> io::Result<()> {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        Note {
            damaged: *damaged,
            ..note
        }
        .write(&self.file)
    }

    /// Notes for the next start that the database is damaged.
    pub(super) fn mark_damaged(&self) -> io::Result<()> {
        *self.damaged.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.write_note(self.note()?.unwrap_or_default())?;
        self.file.sync_data()
    }
}

/// Makes the folder (0700) and every folder above it that is missing, and syncs their parents, so that
/// a power cut does not take the folder away from under a synced file.
pub(super) fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(Path::new(""));
    create_folder(parent)?;
    // Recursive: somebody else may make it at the same time.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    sync_folder_of(folder)
}

/// Takes the lock beside the database file.
///
/// # Errors
/// `WouldBlock` where another process holds it.
pub(super) fn lock(database: &Path) -> io::Result<Lock> {
    let file = open_private(&beside(database, ".lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock {
            file,
            damaged: Mutex::new(false),
        }),
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
    sync_folder_of(path)
}

/// A file beside the database: SQLite's log is `-wal`, for example.
pub(super) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

/// SQLite's log.
pub(super) fn log(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

/// Bytes of the disk that SQLite's log takes.
pub(super) fn log_size(database: &Path) -> u64 {
    fs::metadata(log(database)).map_or(0, |log| log.len())
}

/// Makes a file that only its owner may read.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    open_private(path).map(drop)
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
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

/// Makes sure that the names in the file's folder are on disk.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn folders_are_made_for_their_owner_alone_and_not_in_the_place_of_a_file() {
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
    fn what_cannot_be_removed_is_an_error_and_what_is_gone_is_not() {
        let home = TempDir::new().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        remove(&file).unwrap();
        remove(&file).unwrap();
        remove(home.path()).unwrap_err();
    }
}
