//! Where the control socket is, and how it is reached although its path may be too long for a socket address.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// The longest path in bytes that a socket address can contain: `sun_path` without its terminating zero.
const LONGEST: usize = 107;

/// The control socket of a spool.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// A short path of the same file. It is valid while the folder is open.
    short: PathBuf,
    _folder: Option<File>,
}

impl SocketFile {
    /// The socket beside this database, whose path has no symbolic links.
    ///
    /// # Errors
    /// Fails if the folder cannot be opened, or if the file's name alone is too long.
    pub(super) fn of(database: &Path) -> io::Result<Self> {
        let mut path = database.as_os_str().to_owned();
        path.push(".sock");
        let path = PathBuf::from(path);
        if path.as_os_str().len() <= LONGEST {
            let short = path.clone();
            return Ok(Self {
                path,
                short,
                _folder: None,
            });
        }
        // Linux resolves this path to the open folder.
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let folder = File::options()
            .read(true)
            .custom_flags(OFlag::O_PATH.bits() | OFlag::O_DIRECTORY.bits())
            .open(parent)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
        if short.as_os_str().len() > LONGEST {
            let reason =
                format!("its name has more than the {LONGEST} bytes that a socket's path may have");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        Ok(Self {
            path,
            short,
            _folder: Some(folder),
        })
    }

    /// The path for people.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Listens; replaces a socket that an earlier process has left. The caller holds the spool's lock, so no other relay
    /// listens on it.
    pub(super) fn bind(&self) -> io::Result<UnixListener> {
        self.remove()?;
        let listener = UnixListener::bind(&self.short)?;
        // Until this is done, only the check of each peer's user protects the socket, if the folder does not.
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Connects to the relay; `None` if none listens.
    pub(super) fn connect(&self) -> io::Result<Option<UnixStream>> {
        match UnixStream::connect(&self.short) {
            Ok(stream) => Ok(Some(stream)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the socket, but no other kind of file.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(found) if found.file_type().is_socket() => fs::remove_file(&self.path),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file of another kind is in its place; remove it",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_but_no_other_file() {
        let folder = TempDir::new().unwrap();
        let socket = SocketFile::of(&folder.path().join("spool.db")).unwrap();
        assert!(socket.connect().unwrap().is_none());
        drop(socket.bind().unwrap());
        assert!(socket.connect().unwrap().is_none(), "stale");
        let listener = socket.bind().unwrap();
        let mode = fs::metadata(socket.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(socket.connect().unwrap().is_some());
        drop(listener);
        socket.remove().unwrap();
        fs::write(socket.path(), "diary").unwrap();
        socket.bind().unwrap_err();
        assert_eq!(fs::read_to_string(socket.path()).unwrap(), "diary");
    }

    #[test]
    fn a_path_of_any_length_works_unless_the_name_is_too_long() {
        let home = TempDir::new().unwrap();
        let folder = home.path().join("a".repeat(150)).join("b".repeat(150));
        fs::create_dir_all(&folder).unwrap();
        let socket = SocketFile::of(&folder.join("spool.db")).unwrap();
        let _listener = socket.bind().unwrap();
        assert!(folder.join("spool.db.sock").exists());
        assert!(socket.connect().unwrap().is_some());
        let long = SocketFile::of(&folder.join("n".repeat(100)));
        assert_eq!(long.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
