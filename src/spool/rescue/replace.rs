//! A damaged database moves aside, and what was rescued takes its place: safe at every moment.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use crate::spool::files::{beside, folder_of, log, remove, sync_folder_of};

/// What the name of a database that was put aside has behind that of the database.
const ASIDE: &str = ".damaged-";

/// Where what was rescued is gathered.
pub(super) fn rescued(database: &Path) -> PathBuf {
    beside(database, ".rescued")
}

/// Replaces a damaged database by what was rescued from it. Returns where the damaged one is now.
///
/// It moves first: as long as there is no database in its place, what was rescued is complete, and
/// [`finish`] can take over.
pub(super) fn replace(database: &Path) -> io::Result<PathBuf> {
    File::open(rescued(database))?.sync_all()?;
    let aside = unused_name(database, Timestamp::now())?;
    fs::rename(database, &aside)?;
    sync_folder_of(database)?;
    move_log(database, &aside)?;
    take_place(database)?;
    Ok(aside)
}

/// Ends a replacement that was cut short, if there is one.
pub(in crate::spool) fn finish(database: &Path) -> io::Result<()> {
    if fs::exists(database)? || !fs::exists(rescued(database))? {
        return Ok(());
    }
    move_log(database, &unused_name(database, Timestamp::now())?)?;
    take_place(database)
}

/// Databases that were put aside, oldest first: somebody should look at them, and then remove them.
pub(in crate::spool) fn put_aside(database: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let name = database.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}{ASIDE}");
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

/// The log goes with the database that it belongs to.
fn move_log(database: &Path, aside: &Path) -> io::Result<()> {
    if fs::exists(log(database))? {
        fs::rename(log(database), log(aside))?;
    }
    remove(&beside(database, "-shm"))?;
    sync_folder_of(database)
}

fn take_place(database: &Path) -> io::Result<()> {
    fs::rename(rescued(database), database)?;
    sync_folder_of(database)
}

/// A name that tells when: `spool.db.damaged-20261124T101530Z`.
fn unused_name(database: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let now = now.strftime("%Y%m%dT%H%M%SZ");
    let name = beside(database, &format!("{ASIDE}{now}"));
    if fs::exists(&name)? || fs::exists(log(&name))? {
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

    /// Whenever it is cut short, the next start finds either the damaged database and its log, or what
    /// was rescued; and the damaged one is kept.
    #[test]
    fn can_be_cut_short_anywhere() {
        for moved in 0..=3 {
            let folder = TempDir::new().unwrap();
            let database = folder.path().join("spool.db");
            let aside = folder.path().join("spool.db.damaged-1");
            let write = |path: &Path, text| fs::write(path, text).unwrap();
            write(&rescued(&database), "rescued");
            write(if moved >= 1 { &aside } else { &database }, "damaged");
            write(&log(if moved >= 2 { &aside } else { &database }), "log");
            if moved < 2 {
                write(&beside(&database, "-shm"), "index");
            }
            if moved == 3 {
                fs::rename(rescued(&database), &database).unwrap();
            }
            finish(&database).unwrap();
            if moved == 0 {
                assert_eq!(fs::read_to_string(&database).unwrap(), "damaged");
                replace(&database).unwrap();
            }
            assert_eq!(fs::read_to_string(&database).unwrap(), "rescued");
            let aside = put_aside(&database).unwrap();
            assert_eq!(aside.len(), 1, "{moved}: {:?}", names(&folder));
            assert_eq!(fs::read_to_string(&aside[0]).unwrap(), "damaged");
            let logs: Vec<String> = names(&folder)
                .into_iter()
                .filter(|name| name.ends_with("-wal"))
                .collect();
            assert!(logs.len() == 1 && logs[0] != "spool.db-wal", "{logs:?}");
            assert_eq!(names(&folder).len(), 3, "{:?}", names(&folder));
        }
    }

    /// Nor over a log whose database somebody has removed.
    #[test]
    fn nothing_that_was_put_aside_is_written_over() {
        let folder = TempDir::new().unwrap();
        let database = folder.path().join("spool.db");
        let unused = || unused_name(&database, Timestamp::UNIX_EPOCH).unwrap();
        let name = unused();
        assert_eq!(
            name,
            folder.path().join("spool.db.damaged-19700101T000000Z")
        );
        for taken in [name.clone(), log(&name)] {
            fs::write(&taken, "").unwrap();
            assert_ne!(unused(), name, "{}", taken.display());
            fs::remove_file(taken).unwrap();
        }
        assert_eq!(unused(), name);
    }
}
