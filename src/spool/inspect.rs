//! Looks into the spool's file without changing it, beside a running relay or without one.
//!
//! Every read transaction is short, so that the relay can checkpoint the WAL: a search reads the events in pieces, and
//! nothing is printed while a transaction is open. Between two pieces the relay may append and purge.

mod dead_letters;
mod overview;
mod search;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::unistd::{AccessFlags, access};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction};
use uuid::Uuid;

pub use dead_letters::{DeadLetterPages, DeadLetterQuery, KeptDeadLetter};
pub use overview::{CursorOverview, SpoolOverview};
pub use search::{EventQuery, EventSearch, FoundEvent, SearchOrder, SearchPiece};

use super::config::Config;
use super::store::{OpenError, SALVAGE, is_damage};
use super::watermark::Watermark;
use super::{files, schema};
use crate::event::{Seq, UnixMillis};

/// Why the spool could not be read.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The file is damaged.
    #[error("spool {} is damaged: {reason}; {SALVAGE}", .path.display())]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// SQLite failed.
    #[error("could not read spool {}", .path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

/// The spool's file, open for reading.
#[derive(Debug)]
pub struct Inspector {
    path: PathBuf,
    connection: Connection,
}

impl Inspector {
    /// Opens the file. Does not create, lock or salvage it. Like all methods here, this blocks.
    ///
    /// # Errors
    /// Fails if there is no file, or if it is not a spool, of a newer version, damaged, or not readable.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let path = find_file(&config.path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let identified = schema::connect(&path, flags).and_then(|connection| {
            let application = pragma(&connection, "application_id")?;
            let version = pragma(&connection, "user_version")?;
            Ok((connection, application, version))
        });
        match identified {
            Ok((connection, schema::APPLICATION_ID, schema::VERSION)) => {
                Ok(Self { path, connection })
            }
            Ok((_, schema::APPLICATION_ID, found @ schema::VERSION..schema::LARGEST_VERSION)) => {
                let known = schema::VERSION;
                Err(OpenError::Newer { path, found, known })
            }
            Ok(_) => Err(not_a_spool(path, "the file has no header of a spool")),
            Err(error) if is_damage(&error) => Err(not_a_spool(path, &error.to_string())),
            Err(source) => Err(OpenError::Database { path, source }),
        }
    }

    /// The database file, without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of a purged event with this id, if the id is still recognised. Search the kept events first: an event
    /// that is purged meanwhile is then found here.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn purged(&self, id: Uuid) -> Result<Option<Seq>, InspectError> {
        self.read(|transaction| {
            let newest = "SELECT seq FROM recent_ids WHERE id = ?1 ORDER BY seq DESC LIMIT 1";
            let seq = transaction.query_row(newest, [id.as_bytes()], |row| row.get(0));
            Ok(seq.optional()?.map(Seq))
        })
    }

    /// When the oldest event after `position` was appended.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn appended_after(&self, position: Seq) -> Result<Option<UnixMillis>, InspectError> {
        self.read(|transaction| schema::appended_after(transaction, position))
    }

    /// Reads in one transaction, which ends before this returns.
    fn read<T>(
        &self,
        read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, InspectError> {
        let transaction = self.connection.unchecked_transaction();
        let outcome = transaction.and_then(|transaction| read(&transaction));
        outcome.map_err(|source| {
            let path = self.path.clone();
            if is_damage(&source) {
                let reason = source.to_string();
                InspectError::Damaged { path, reason }
            } else {
                InspectError::Database { path, source }
            }
        })
    }
}

/// Finds the database file, and checks what SQLite would change or not explain.
fn find_file(configured: &Path) -> Result<PathBuf, OpenError> {
    let files_error = |path: &Path, source: io::Error| {
        let hint = format!("{source}; run this command as the relay's user");
        OpenError::Files {
            path: path.to_owned(),
            source: io::Error::new(source.kind(), hint),
        }
    };
    let path = match fs::canonicalize(configured) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Missing(configured.to_owned()));
        }
        path => path.map_err(|error| files_error(configured, error))?,
    };
    access(&path, AccessFlags::R_OK).map_err(|error| files_error(&path, error.into()))?;
    // SQLite would delete the WAL of an empty file, even for a reader.
    if fs::metadata(&path).is_ok_and(|file| file.len() == 0) {
        return Err(OpenError::unsalvaged(path, "the file is empty"));
    }
    Ok(path)
}

/// The error for a file that has no header of a spool: a damaged spool if a high-water mark is beside it.
fn not_a_spool(path: PathBuf, reason: &str) -> OpenError {
    let lock = fs::read_to_string(files::beside(&path, ".lock")).unwrap_or_default();
    let line = lock.get(..Watermark::LENGTH);
    if line.and_then(Watermark::decode).is_some() {
        OpenError::unsalvaged(path, reason)
    } else {
        OpenError::Foreign(path)
    }
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i32> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}
