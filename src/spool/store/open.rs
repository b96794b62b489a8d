//! Opening the file: its tables, its marks, what it holds, and the cursors of the sinks that are there.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, ffi};
use uuid::Uuid;

use super::{Store, save_cursors};
use crate::event::Seq;
use crate::spool::files::{self, Lock};
use crate::spool::recent_ids::RecentIds;
use crate::spool::{AppendError, Config, schema};

/// Why the spool cannot be opened. It is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("spool {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// There is no file.
    #[error("there is no spool {}", .0.display())]
    Missing(PathBuf),
    /// The file is a database, but not a spool.
    #[error("{} is not a spool of recall-relay", .0.display())]
    Foreign(PathBuf),
    /// The file was written by a newer version of the program.
    #[error("spool {} has format {found}, this program knows up to {known}: run a newer version", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i32,
        /// The newest format that is known.
        known: i32,
    },
    /// The folder or the files beside the database.
    #[error("could not prepare the files of spool {}", .path.display())]
    Files {
        /// The database file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database.
    #[error("could not open spool {}", .path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

/// The name of the sink that holds nothing once it is not configured.
const STDOUT: &str = "stdout";

impl Store {
    /// Opens the file, creating it where there is none.
    pub(in crate::spool) fn open(config: &Config) -> Result<Self, OpenError> {
        let path = &config.path;
        let files_error = |source| OpenError::Files {
            path: path.clone(),
            source,
        };
        if let Some(folder) = path.parent() {
            files::create_folder(folder).map_err(files_error)?;
        }
        let lock = match files::lock(path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(OpenError::Locked(path.clone()));
            }
            lock => lock.map_err(files_error)?,
        };
        files::create_database(path).map_err(files_error)?;
        Self::open_database(config, lock)
    }

    fn open_database(config: &Config, lock: Lock) -> Result<Self, OpenError> {
        let path = &config.path;
        let database_error = |source| OpenError::Database {
            path: path.clone(),
            source,
        };
        let connection = Connection::open(path).map_err(database_error)?;
        let (application, version, tables) = marks(&connection).map_err(database_error)?;
        match (application, version) {
            (0, 0) if tables == 0 => schema::create(&connection).map_err(database_error)?,
            (schema::APPLICATION_ID, schema::VERSION) => {}
            (schema::APPLICATION_ID, found) if found > schema::VERSION => {
                return Err(OpenError::Newer {
                    path: path.clone(),
                    found,
                    known: schema::VERSION,
                });
            }
            _ => return Err(OpenError::Foreign(path.clone())),
        }
        Self::load(connection, config, lock).map_err(database_error)
    }

    fn load(connection: Connection, config: &Config, lock: Lock) -> rusqlite::Result<Self> {
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.set_prepared_statement_cache_capacity(32);
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        if mode != "wal" {
            return Err(invalid(format!(
                "the file system allows journal_mode {mode}, not wal"
            )));
        }
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "temp_store", "memory")?;
        // SQLite's own checkpoints swallow a failed sync, and make some commit wait.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        // A log that is found may never have been synced: whoever wrote it was killed, or its sync failed.
        // What it holds must be on disk before anything is believed to be, or appended behind it.
        let busy: bool =
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy {
            return Err(invalid(
                "somebody reads the spool and never ends".to_owned(),
            ));
        }

        let bounds = "SELECT (SELECT min(seq) FROM events), (SELECT max(seq) FROM events),
                             (SELECT max(seq) FROM recent_ids), (SELECT max(seq) FROM cursors),
                             (SELECT next_seq FROM identity)";
        let (first, next) = connection.query_row(bounds, [], |row| {
            let largest = [row.get::<_, Option<u64>>(1)?, row.get(2)?, row.get(3)?];
            let after = largest.into_iter().flatten().max().map_or(1, |seq| seq + 1);
            let next = after.max(row.get(4)?);
            Ok((row.get::<_, Option<u64>>(0)?.unwrap_or(next), next))
        })?;

        let mut recent = RecentIds::new(config.recent_ids);
        let oldest = next.saturating_sub(config.recent_ids as u64);
        let ids = "SELECT seq, id FROM recent_ids WHERE seq >= ?1
                   UNION ALL SELECT seq, id FROM events WHERE seq >= ?1 ORDER BY 1";
        let mut statement = connection.prepare(ids)?;
        let mut rows = statement.query([oldest])?;
        while let Some(row) = rows.next()? {
            recent.insert(Uuid::from_bytes(row.get(1)?));
        }
        drop(rows);
        drop(statement);

        let saved_cursors = connection
            .prepare("SELECT sink, seq FROM cursors")?
            .query_map([], |row| Ok((row.get(0)?, Seq(row.get(1)?))))?
            .collect::<rusqlite::Result<_>>()?;
        Ok(Self {
            connection,
            config: config.clone(),
            first: Seq(first),
            next: Seq(next),
            last_at_open: Seq(next - 1),
            log_bytes: 0,
            recent,
            saved_cursors,
            _lock: lock,
        })
    }

    /// Makes sure that every configured sink has a cursor on disk, and drops the one of stdout where
    /// it is not the sink: it holds nothing.
    pub(in crate::spool) fn settle_cursors(&mut self, sinks: &[&str]) -> Result<(), AppendError> {
        let start = Seq(self.first.0 - 1);
        let new: BTreeMap<String, Seq> = sinks
            .iter()
            .filter(|sink| !self.saved_cursors.contains_key(**sink))
            .map(|sink| ((*sink).to_owned(), start))
            .collect();
        let drop_stdout = !sinks.contains(&STDOUT);
        self.transaction(|connection| {
            save_cursors(connection, &new)?;
            if drop_stdout {
                connection.execute("DELETE FROM cursors WHERE sink = ?1", [STDOUT])?;
            }
            Ok(())
        })?;
        self.saved_cursors.extend(new);
        if drop_stdout {
            self.saved_cursors.remove(STDOUT);
        }
        Ok(())
    }

    /// Deletes a sink's cursor.
    pub(in crate::spool) fn forget(&self, sink: &str) -> Result<bool, OpenError> {
        self.connection
            .execute("DELETE FROM cursors WHERE sink = ?1", [sink])
            .map(|rows| rows > 0)
            .map_err(|source| OpenError::Database {
                path: self.config.path.clone(),
                source,
            })
    }
}

/// Why the spool cannot be opened, as SQLite would say it.
fn invalid(reason: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR), Some(reason))
}

/// The file's application, version, and number of tables.
fn marks(connection: &Connection) -> rusqlite::Result<(i32, i32, i64)> {
    Ok((
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?,
        connection.pragma_query_value(None, "user_version", |row| row.get(0))?,
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?,
    ))
}
