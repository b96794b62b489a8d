//! Withdraws access to existing files of the spool from other users. Created ones are private from the start.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::files::{beside, wal};
use crate::telemetry::chain;

/// The mode of the spool's files.
const PRIVATE: u32 = 0o600;

/// The permissions of group and others.
const OTHERS: u32 = 0o077;

/// Makes the database, the quarantined ones and the files beside them private, and logs which were not. The folder
/// stays as it is: it may be shared, such as `/var/lib`.
///
/// The files are not opened: closing them would drop SQLite's locks.
pub(super) fn make_private(database: &Path, quarantined: &[PathBuf]) {
    let mut narrowed = Vec::new();
    for path in with_companions(database, quarantined) {
        match narrow(&path) {
            Ok(None) => {}
            Ok(Some(mode)) => narrowed.push(format!("{} ({mode:04o})", path.display())),
            Err(error) => warn!(
                code = "spool_mode_not_narrowed",
                path = %path.display(),
                error = chain(&error),
                "a file of the spool, which contains user names and IP addresses, is accessible to other users, and \
                 its mode could not be changed to 0600; make the relay's user its owner"
            ),
        }
    }
    if !narrowed.is_empty() {
        warn!(
            code = "spool_mode_narrowed",
            files = narrowed.join(", "),
            "files of the spool, which contain user names and IP addresses, were accessible to other users; their \
             mode is now 0600; run programs that have to read them as the relay's user, and keep other programs from \
             changing the mode"
        );
    }
}

fn with_companions(database: &Path, quarantined: &[PathBuf]) -> Vec<PathBuf> {
    let databases = quarantined.iter().map(PathBuf::as_path).chain([database]);
    let mut paths: Vec<_> = databases
        .flat_map(|path| [path.to_owned(), wal(path), beside(path, "-shm")])
        .collect();
    paths.push(beside(database, ".lock"));
    paths
}

/// Makes a file private. Returns its mode before, if that was another one.
fn narrow(path: &Path) -> io::Result<Option<u32>> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    let mode = metadata.permissions().mode() & 0o7777;
    // Changing the mode of a link would change that of its target, which is not ours.
    if !metadata.is_file() || mode & OTHERS == 0 {
        return Ok(None);
    }
    fs::set_permissions(path, Permissions::from_mode(PRIVATE))?;
    Ok(Some(mode))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;
    use crate::telemetry::CapturedLog;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn write(path: &Path, mode: u32) {
        fs::write(path, "").unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_the_spools_own_files_are_narrowed_and_named() {
        let folder = TempDir::new().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let database = folder.path().join("spool.db");
        let old = beside(&database, ".damaged-1");
        let wide = [
            (&old, 0o604),
            (&wal(&old), 0o620),
            (&database, 0o644),
            (&wal(&database), 0o640),
            (&beside(&database, "-shm"), 0o666),
        ];
        for (path, mode) in wide {
            write(path, mode);
        }
        // Private already.
        write(&beside(&database, ".lock"), 0o600);
        let other = folder.path().join("spool.db.txt");
        write(&other, 0o644);
        symlink(&other, beside(&old, "-shm")).unwrap();

        let narrow = || make_private(&database, std::slice::from_ref(&old));
        let lines = CapturedLog::default().lines(narrow);
        let named = wide.map(|(path, mode)| format!("{} ({mode:04o})", path.display()));
        assert_eq!(
            lines,
            [format!("spool_mode_narrowed files={}", named.join(", "))]
        );
        for (path, _) in wide {
            assert_eq!(mode(path), 0o600, "{}", path.display());
        }
        assert_eq!(mode(&other), 0o644);
        assert_eq!(mode(folder.path()), 0o755);
        assert_eq!(CapturedLog::default().lines(narrow), [""; 0]);
    }
}
