//! Opening the file: its tables, its marks, what it holds, and the cursors of the sinks that are there.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags, ffi};
use uuid::Uuid;

use super::{SavedCursor, Store, is_damage, save_cursors};
use crate::event::Seq;
use crate::spool::files::{self, Lock};
use crate::spool::note::Note;
use crate::spool::recent_ids::RecentIds;
use crate::spool::rescue::{self, put_back};
use crate::spool::room::Usage;
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
    /// The file is damaged, and nothing could be made of it.
    #[error("spool {} is damaged, and what it holds could not be rescued", .path.display())]
    Rescue {
        /// The database file.
        path: PathBuf,
        /// What went wrong.
        source: rescue::Error,
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

/// No program has so many formats: such a version is a damaged one.
const LARGEST_VERSION: i32 = 1000;

/// No spool lives to give out a larger number.
const LARGEST: u64 = 1 << 62;

/// The size to which the log is cut back, should it have grown larger once.
const LOG_LIMIT: i64 = 16 << 20;

/// What a file turned out to be.
enum Kind {
    New,
    Spool,
    /// A spool that cannot be read as one, and why.
    Damaged(String),
}

/// Why a file could not be opened.
enum Obstacle {
    /// It can be rescued.
    Damage(String),
    Other(OpenError),
}

impl Store {
    /// Opens the file, creating it where there is none, and rescuing what it holds where it is damaged.
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
            lock => Arc::new(lock.map_err(files_error)?),
        };
        rescue::finish(path).map_err(files_error)?;
        files::create_database(path).map_err(files_error)?;
        let note = lock.note().map_err(files_error)?;
        let damage = match Self::open_database(config, &lock, note) {
            Ok(store) => return Ok(store),
            Err(Obstacle::Other(error)) => return Err(error),
            Err(Obstacle::Damage(reason)) => reason,
        };
        let rescue_error = |source| OpenError::Rescue {
            path: path.clone(),
            source,
        };
        let findings = rescue::rescue(path, note, damage).map_err(rescue_error)?;
        // What the note knows is in the new file.
        match Self::open_database(config, &lock, None) {
            Ok(mut store) => {
                store.findings = findings;
                Ok(store)
            }
            Err(Obstacle::Other(error)) => Err(error),
            Err(Obstacle::Damage(reason)) => Err(rescue_error(io::Error::other(reason).into())),
        }
    }

    fn open_database(
        config: &Config,
        lock: &Arc<Lock>,
        note: Option<Note>,
    ) -> Result<Self, Obstacle> {
        let path = &config.path;
        let obstacle = |source: rusqlite::Error| {
            if is_damage(&source) {
                Obstacle::Damage(source.to_string())
            } else {
                Obstacle::Other(OpenError::Database {
                    path: path.clone(),
                    source,
                })
            }
        };
        let connection = schema::connect(path, OpenFlags::default()).map_err(obstacle)?;
        match identify(&connection, path, note)? {
            Kind::New => schema::create(&connection).map_err(obstacle)?,
            Kind::Spool => {}
            Kind::Damaged(reason) => return Err(Obstacle::Damage(reason)),
        }
        if note.is_some_and(|note| note.damaged) {
            return Err(Obstacle::Damage(
                "damage was found when it was in use".to_owned(),
            ));
        }
        Self::load(connection, config, lock, note).map_err(|error| match error {
            rescue::Error::Database(source) => obstacle(source),
            rescue::Error::Files(source) => Obstacle::Other(OpenError::Files {
                path: path.clone(),
                source,
            }),
        })
    }

    fn load(
        connection: Connection,
        config: &Config,
        lock: &Arc<Lock>,
        note: Option<Note>,
    ) -> Result<Self, rescue::Error> {
        connection.set_prepared_statement_cache_capacity(32);
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        if mode != "wal" {
            return Err(invalid(format!(
                "the file system allows journal_mode {mode}, not wal"
            ))
            .into());
        }
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "temp_store", "memory")?;
        // SQLite's own checkpoints swallow a failed sync, and make some commit wait.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        connection.pragma_update_and_check(None, "journal_size_limit", LOG_LIMIT, |_| Ok(()))?;
        let missing = put_back::look(&connection, &files::log(&config.path))?;
        // A log that is found may never have been synced: whoever wrote it was killed, or its sync failed.
        // What it holds must be on disk before anything is believed to be, or appended behind it.
        let busy: bool =
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy {
            return Err(invalid("somebody reads the spool and never ends".to_owned()).into());
        }
        let findings = put_back::put_back(&connection, &missing, bounds(&connection)?.1, note)?;
        let (first, last) = bounds(&connection)?;

        let mut recent = RecentIds::new(config.recent_ids);
        let oldest = last.0.saturating_sub(config.recent_ids as u64);
        let ids = "SELECT seq, id FROM recent_ids WHERE seq > ?1
                   UNION ALL SELECT seq, id FROM events WHERE seq > ?1 ORDER BY 1";
        let mut statement = connection.prepare(ids)?;
        let mut rows = statement.query([oldest])?;
        while let Some(row) = rows.next()? {
            recent.insert(Uuid::from_bytes(row.get(1)?));
        }
        drop(rows);
        drop(statement);
        let spool_id = "SELECT spool_id FROM identity";
        let spool_id = connection.query_row(spool_id, [], |row| row.get(0))?;
        let usage = Usage::read(&connection)?;
        let mut store = Self {
            connection,
            config: config.clone(),
            spool_id: Uuid::from_bytes(spool_id),
            first,
            last,
            next: last.next(),
            unused: None,
            usage,
            log_bytes: 0,
            recent,
            saved_cursors: BTreeMap::new(),
            findings,
            lock: Arc::clone(lock),
        };
        store.load_cursors()?;
        Ok(store)
    }

    /// Reads the cursors; a damaged one starts again at the oldest event.
    fn load_cursors(&mut self) -> rusqlite::Result<()> {
        let unknown = SavedCursor {
            seq: Seq(self.first.0 - 1),
            holds: true,
        };
        SavedCursor::each(&self.connection, |sink, cursor| {
            if cursor.is_none() {
                self.findings.cursors.push(sink.clone());
            }
            self.saved_cursors.insert(sink, cursor.unwrap_or(unknown));
            Ok(())
        })
    }

    /// Makes sure that every configured sink has a cursor on disk; drops the one of stdout where it is not
    /// the sink; and finds out which of the sinks that are gone hold nothing, because they had confirmed
    /// everything. That holds until they come back.
    pub(in crate::spool) fn settle_cursors(&mut self, sinks: &[&str]) -> Result<(), AppendError> {
        let start = Seq(self.first.0 - 1);
        let mut settled = BTreeMap::new();
        for sink in sinks {
            let saved = self.saved_cursors.get(*sink).map(|cursor| cursor.seq);
            let is_missing = saved.is_none() && self.findings.rescue.is_some();
            if is_missing && !self.findings.cursors.iter().any(|named| named == sink) {
                self.findings.cursors.push((*sink).to_owned());
            }
            // What it missed while it held nothing may be gone.
            let cursor = SavedCursor {
                seq: saved.map_or(start, |seq| seq.max(start)),
                holds: true,
            };
            settled.insert((*sink).to_owned(), cursor);
        }
        for (sink, cursor) in &self.saved_cursors {
            if !sinks.contains(&sink.as_str()) && sink != STDOUT {
                let holds = cursor.holds && cursor.seq < self.last;
                settled.insert(sink.clone(), SavedCursor { holds, ..*cursor });
            }
        }
        self.transaction(|connection| {
            save_cursors(connection, &settled)?;
            if !settled.contains_key(STDOUT) {
                connection.execute("DELETE FROM cursors WHERE sink = ?1", [STDOUT])?;
            }
            Ok(())
        })?;
        self.saved_cursors = settled;
        Ok(())
    }

    /// Deletes a sink's cursor.
    pub(in crate::spool) fn forget(&mut self, sink: &str) -> Result<bool, OpenError> {
        self.saved_cursors.remove(sink);
        self.connection
            .execute("DELETE FROM cursors WHERE sink = ?1", [sink])
            .map(|rows| rows > 0)
            .map_err(|source| OpenError::Database {
                path: self.config.path.clone(),
                source,
            })
    }
}

/// The oldest event, or the next to come; and the newest number that is in use.
fn bounds(connection: &Connection) -> rusqlite::Result<(Seq, Seq)> {
    let bounds = "SELECT (SELECT min(seq) FROM events), (SELECT max(seq) FROM events),
                         (SELECT max(seq) FROM recent_ids), (SELECT max(last_seq) FROM gaps),
                         (SELECT max(seq) FROM cursors), (SELECT next_seq FROM identity)";
    connection.query_row(bounds, [], |row| {
        let mut next: u64 = row.get(5)?;
        for column in 1..=4 {
            next = next.max(row.get::<_, Option<u64>>(column)?.map_or(1, |seq| seq + 1));
        }
        let first = row.get::<_, Option<u64>>(0)?.unwrap_or(next);
        if first == 0 || next > LARGEST {
            return Err(rusqlite::Error::IntegralValueOutOfRange(5, i64::MAX));
        }
        Ok((Seq(first), Seq(next - 1)))
    })
}

/// Why the spool cannot be opened, as SQLite would say it.
fn invalid(reason: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR), Some(reason))
}

/// What a file is, by its marks; where these are not ours, by what else speaks for it.
fn identify(connection: &Connection, path: &Path, note: Option<Note>) -> Result<Kind, Obstacle> {
    let reason = match marks(connection) {
        Ok((0, 0, 0)) if note.is_none_or(|note| note.last == Seq::default()) => {
            return Ok(Kind::New);
        }
        Ok((0, 0, 0)) => "it is empty".to_owned(),
        Ok((schema::APPLICATION_ID, schema::VERSION, _)) => return Ok(Kind::Spool),
        Ok((schema::APPLICATION_ID, found, _))
            if (schema::VERSION..LARGEST_VERSION).contains(&found) =>
        {
            return Err(Obstacle::Other(OpenError::Newer {
                path: path.to_owned(),
                found,
                known: schema::VERSION,
            }));
        }
        Ok(_) if has_our_tables(connection) => {
            return Ok(Kind::Damaged(
                "its marks are not those of a spool".to_owned(),
            ));
        }
        Ok(_) => return Err(Obstacle::Other(OpenError::Foreign(path.to_owned()))),
        Err(error) if is_damage(&error) => error.to_string(),
        Err(source) => {
            return Err(Obstacle::Other(OpenError::Database {
                path: path.to_owned(),
                source,
            }));
        }
    };
    let holds_events = || rescue::holds_events(path).unwrap_or(false);
    if note.is_some() || holds_events() {
        Ok(Kind::Damaged(reason))
    } else {
        Err(Obstacle::Other(OpenError::Foreign(path.to_owned())))
    }
}

fn has_our_tables(connection: &Connection) -> bool {
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name IN ('events', 'cursors', 'gaps')";
    connection
        .query_row(tables, [], |row| row.get::<_, u8>(0))
        .is_ok_and(|found| found == 3)
}

/// The file's application, version, and number of tables.
fn marks(connection: &Connection) -> rusqlite::Result<(i32, i32, i64)> {
    Ok((
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?,
        connection.pragma_query_value(None, "user_version", |row| row.get(0))?,
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?,
    ))
}

#[cfg(test)]
mod tests;
