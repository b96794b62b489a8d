//! Replaces a damaged database with what was salvaged from it. It can be interrupted at any moment without loss.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use crate::spool::files::{beside, folder_of, remove, sync_folder_of, wal};

/// Follows the database's name in the name of a quarantined file.
const QUARANTINED: &str = ".damaged-";

/// The path of the new database while it is being written.
pub(super) fn salvaged(database: &Path) -> PathBuf {
    beside(database, ".salvaged")
}

/// Replaces a damaged database with the salvaged one. Returns the new path of the damaged one.
///
/// The damaged one is moved first: while there is no database, the salvaged one is complete, and [`finish`] can finish
/// the replacement.
pub(super) fn replace(database: &Path) -> io::Result<PathBuf> {
    File::open(salvaged(database))?.sync_all()?;
    let path = unused_name(database, Timestamp::now())?;
    fs::rename(database, &path)?;
    sync_folder_of(database)?;
    move_wal(database, &path)?;
    rename_into_place(database)?;
    Ok(path)
}

/// Finishes a replacement that was interrupted, if there is one.
pub(in crate::spool) fn finish(database: &Path) -> io::Result<()> {
    if fs::exists(database)? || !fs::exists(salvaged(database))? {
        return Ok(());
    }
    move_wal(database, &unused_name(database, Timestamp::now())?)?;
    rename_into_place(database)
}

/// Quarantined databases, oldest first. An operator should inspect and then remove them.
pub(in crate::spool) fn quarantined(database: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let name = database.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}{QUARANTINED}");
    for entry in fs::read_dir(folder_of(database))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) && !name.ends_with("-wal") && !name.ends_with("-shm") {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Moves the WAL together with its database.
fn move_wal(database: &Path, path: &Path) -> io::Result<()> {
    if fs::exists(wal(database))? {
        fs::rename(wal(database), wal(path))?;
    }
    remove(&beside(database, "-shm"))?;
    sync_folder_of(database)
}

fn rename_into_place(database: &Path) -> io::Result<()> {
    fs::rename(salvaged(database), database)?;
    sync_folder_of(database)
}

/// A name with the time, such as `spool.db.damaged-20261124T101530Z`.
fn unused_name(database: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let now = now.strftime("%Y%m%dT%H%M%SZ");
    let name = beside(database, &format!("{QUARANTINED}{now}"));
    if fs::exists(&name)? || fs::exists(wal(&name))? {
        return Ok(beside(&name, &format!("-{}", Uuid::new_v4().simple())));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn names(folder: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Whenever it is interrupted, the next start finds either the damaged database and its WAL, or the salvaged
    /// database; the damaged one is kept.
    #[test]
    fn can_be_interrupted_after_any_step() {
        for moved in 0..=3 {
            let folder = TempDir::new().unwrap();
            let database = folder.path().join("spool.db");
            let path = folder.path().join("spool.db.damaged-1");
            let write = |path: &Path, text| fs::write(path, text).unwrap();
            write(&salvaged(&database), "salvaged");
            write(if moved >= 1 { &path } else { &database }, "damaged");
            write(&wal(if moved >= 2 { &path } else { &database }), "wal");
            if moved < 2 {
                write(&beside(&database, "-shm"), "index");
            }
            if moved == 3 {
                fs::rename(salvaged(&database), &database).unwrap();
            }
            finish(&database).unwrap();
            if moved == 0 {
                assert_eq!(fs::read_to_string(&database).unwrap(), "damaged");
                replace(&database).unwrap();
            }
            assert_eq!(fs::read_to_string(&database).unwrap(), "salvaged");
            let path = quarantined(&database).unwrap();
            assert_eq!(path.len(), 1, "{moved}: {:?}", names(&folder));
            assert_eq!(fs::read_to_string(&path[0]).unwrap(), "damaged");
            let wals: Vec<String> = names(&folder)
                .into_iter()
                .filter(|name| name.ends_with("-wal"))
                .collect();
            assert!(wals.len() == 1 && wals[0] != "spool.db-wal", "{wals:?}");
            assert_eq!(names(&folder).len(), 3, "{:?}", names(&folder));
        }
    }

    /// Not even a WAL whose database was removed.
    #[test]
    fn quarantined_files_are_never_overwritten() {
        let folder = TempDir::new().unwrap();
        let database = folder.path().join("spool.db");
        let unused = || unused_name(&database, Timestamp::UNIX_EPOCH).unwrap();
        let name = unused();
        assert_eq!(
            name,
            folder.path().join("spool.db.damaged-19700101T000000Z")
        );
        for taken in [name.clone(), wal(&name)] {
            fs::write(&taken, "").unwrap();
            assert_ne!(unused(), name, "{}", taken.display());
            fs::remove_file(taken).unwrap();
        }
        assert_eq!(unused(), name);
    }
}
