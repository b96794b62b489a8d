//! Opens the file: identifies it, loads its contents, and reconciles the cursors with the configured sinks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use rusqlite::{Connection, OpenFlags, ffi};
use uuid::Uuid;

use super::{SavedCursor, Store, is_damage, rejected_bytes, save_cursors};
use crate::event::Seq;
use crate::spool::append::AppendError;
use crate::spool::config::Config;
use crate::spool::files::{self, Lock};
use crate::spool::quota::Usage;
use crate::spool::recent_ids::RecentIds;
use crate::spool::salvage::{self, SalvageReport};
use crate::spool::watermark::Watermark;
use crate::spool::{gaps, schema};

/// Why the spool could not be opened. If it is [`Self::Locked`], [`Self::Missing`], [`Self::Foreign`] or
/// [`Self::Newer`], nothing was changed; in the other cases the WAL may have been checkpointed or a damaged file
/// quarantined.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("spool {} is in use by another process; stop it, or set another spool.path", .0.display())]
    Locked(PathBuf),
    /// The file does not exist.
    #[error("there is no spool {}; check spool.path", .0.display())]
    Missing(PathBuf),
    /// The file is not a spool.
    #[error("{} is not a spool of recall-relay; set spool.path to another file", .0.display())]
    Foreign(PathBuf),
    /// The file was written by a newer version of the program.
    #[error("spool {} has format {found}, but this version reads formats up to {known}; run a newer version", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i32,
        /// The newest format that this program can read.
        known: i32,
    },
    /// The folder or the files beside the database could not be read or written.
    #[error("could not prepare the files of spool {}", .path.display())]
    Files {
        /// The database file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is damaged, and so is the new one that was salvaged from it.
    #[error("spool {} is damaged: {reason}", .path.display())]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is damaged, and no new one could be written.
    #[error("spool {} is damaged, and its events could not be salvaged", .path.display())]
    Salvage {
        /// The database file.
        path: PathBuf,
        /// What went wrong.
        source: salvage::Error,
    },
    /// SQLite failed.
    #[error("could not open spool {}", .path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl OpenError {
    /// The error of a command that finds a damaged spool: it does not salvage.
    pub(in crate::spool) fn unsalvaged(path: PathBuf, reason: &str) -> Self {
        let reason = format!("{reason}; {SALVAGE}");
        Self::Damaged { path, reason }
    }
}

/// What the error of a command about a damaged spool ends with.
pub(in crate::spool) const SALVAGE: &str = "the next start of the relay salvages what can be read";

/// What opening does with a damaged file, and for how long it waits for the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The start of a relay: creates a missing file, salvages a damaged one, and waits for a command that has the spool
    /// open.
    Run,
    /// A command that changes an existing, undamaged file.
    Change,
}

/// How long a start waits for the lock. Commands hold it for less.
const LOCK_TIMEOUT: Duration = if cfg!(test) {
    Duration::from_millis(200)
} else {
    Duration::from_secs(5)
};

/// The sink that pins nothing when it is no longer configured.
const STDOUT: &str = "stdout";

/// The size that the WAL is truncated to if it has grown larger.
const WAL_LIMIT: i64 = 16 << 20;

impl Store {
    /// Opens the file for a relay. Creates it if there is none; salvages it if it is damaged. Blocks.
    pub(in crate::spool) fn open(config: &Config) -> Result<Self, OpenError> {
        Self::open_for(config, Purpose::Run)
    }

    /// Opens the file for a command. Neither creates nor salvages it. Blocks.
    pub(in crate::spool) fn open_existing(config: &Config) -> Result<Self, OpenError> {
        Self::open_for(config, Purpose::Change)
    }

    fn open_for(config: &Config, purpose: Purpose) -> Result<Self, OpenError> {
        let files_error = |source| OpenError::Files {
            path: config.path.clone(),
            source,
        };
        // Otherwise the steps below would create it.
        if purpose == Purpose::Change && !config.path.exists() {
            return Err(OpenError::Missing(config.path.clone()));
        }
        let path = files::resolve(&config.path).map_err(files_error)?;
        let timeout = match purpose {
            Purpose::Run => LOCK_TIMEOUT,
            Purpose::Change => Duration::ZERO,
        };
        let lock = match files::lock(&path, timeout) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(OpenError::Locked(path));
            }
            lock => Arc::new(lock.map_err(files_error)?),
        };
        let mut watermark = lock.watermark().map_err(files_error)?;
        if purpose == Purpose::Change {
            if lock.is_damaged().map_err(files_error)? {
                let reason = "damage was found while the relay was running";
                return Err(OpenError::unsalvaged(path, reason));
            }
            let config = Config {
                path,
                ..config.clone()
            };
            let opened = Self::open_database(&config, &lock, watermark, purpose);
            return opened.map_err(|error| match error {
                OpenError::Damaged { path, reason } => OpenError::unsalvaged(path, &reason),
                other => other,
            });
        }
        // A salvage that was interrupted may have left the database under another name: finish it before
        // `create_database` creates an empty one.
        salvage::finish(&path).map_err(files_error)?;
        files::create_database(&path).map_err(files_error)?;
        let config = Config {
            path,
            ..config.clone()
        };
        let reason = if lock.is_damaged().map_err(files_error)? {
            // Only a spool is ever marked, so the file must not be refused as foreign.
            watermark.get_or_insert_default();
            "damage was found while the relay was running".to_owned()
        } else {
            match Self::open_database(&config, &lock, watermark, purpose) {
                Err(OpenError::Damaged { reason, .. }) => reason,
                outcome => return outcome,
            }
        };
        let report = salvage::salvage(&config.path, watermark, reason).map_err(|source| {
            let path = config.path.clone();
            match source {
                salvage::Error::Foreign => OpenError::Foreign(path),
                source => OpenError::Salvage { path, source },
            }
        })?;
        // No high-water mark here: the new file has already recorded the gaps that it implies.
        let mut store = Self::open_database(&config, &lock, None, purpose)?;
        lock.clear_damaged().map_err(files_error)?;
        store.report.quarantined = report.quarantined;
        store.report.lost = report.lost;
        Ok(store)
    }

    fn open_database(
        config: &Config,
        lock: &Arc<Lock>,
        watermark: Option<Watermark>,
        purpose: Purpose,
    ) -> Result<Self, OpenError> {
        let path = &config.path;
        let damaged = |reason: &str| OpenError::Damaged {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        let database_error = |source: rusqlite::Error| {
            if is_damage(&source) {
                damaged(&source.to_string())
            } else {
                let path = path.clone();
                OpenError::Database { path, source }
            }
        };
        let had_events = watermark.is_some_and(|mark| mark.last > Seq(0));
        // Check this before SQLite opens the file: it deletes the WAL of an empty file.
        if had_events && fs::metadata(path).is_ok_and(|file| file.len() == 0) {
            return Err(damaged("the file is empty"));
        }
        let connection = schema::connect(path, OpenFlags::default()).map_err(database_error)?;
        match identify(&connection).map_err(database_error)? {
            (0, 0, 0) if !had_events && purpose == Purpose::Run => {
                schema::create(&connection).map_err(database_error)?;
            }
            (schema::APPLICATION_ID, schema::VERSION, _) => {}
            (schema::APPLICATION_ID, found @ schema::VERSION..schema::LARGEST_VERSION, _) => {
                return Err(OpenError::Newer {
                    path: path.clone(),
                    found,
                    known: schema::VERSION,
                });
            }
            _ => return Err(damaged("the file has no header of a spool")),
        }
        Self::load(connection, config, lock, watermark, purpose).map_err(database_error)
    }

    fn load(
        connection: Connection,
        config: &Config,
        lock: &Arc<Lock>,
        watermark: Option<Watermark>,
        purpose: Purpose,
    ) -> rusqlite::Result<Self> {
        connection.set_prepared_statement_cache_capacity(32);
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        if mode != "wal" {
            let reason = format!(
                "SQLite could set journal_mode only to {mode}, not to wal; put spool.path on a local disk"
            );
            return Err(invalid(reason));
        }
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "temp_store", "memory")?;
        // SQLite's automatic checkpoints ignore a failed sync, and delay the commit that triggers them.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        connection.pragma_update_and_check(None, "journal_size_limit", WAL_LIMIT, |_| Ok(()))?;
        // The WAL of an earlier run may never have been synced: its writer was killed, or a sync failed. Its frames
        // must be on disk before we rely on them or append to them.
        let busy: bool =
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy {
            return Err(invalid("another process holds a read transaction on the spool, so its WAL cannot be checkpointed; end that process".to_owned()));
        }
        let mut report = SalvageReport::default();
        let (_, last) = schema::bounds(&connection)?;
        // If the high-water mark is newer than the file, the file has lost its newest events.
        if let Some(mark) = watermark.filter(|mark| mark.last > last) {
            if purpose == Purpose::Change {
                let reason = "its newest events are missing";
                return Err(error_of(ffi::SQLITE_CORRUPT, reason.to_owned()));
            }
            connection.execute_batch("BEGIN IMMEDIATE")?;
            let confirmed = mark.confirmed.max(last);
            gaps::record_missing(&connection, Vec::new(), last, confirmed, mark.last)?;
            schema::save_next_seq(&connection, mark.last.next())?;
            report.lost = gaps::lost_after(&connection, last)?;
            connection.execute_batch("COMMIT")?;
        }
        let (first, last) = schema::bounds(&connection)?;

        let mut recent = RecentIds::new(config.recent_ids);
        let oldest = last.0.saturating_sub(config.recent_ids as u64);
        let ids = "SELECT seq, id FROM recent_ids WHERE seq > ?1
                   UNION ALL SELECT seq, id FROM events WHERE seq > ?1 ORDER BY 1";
        let mut statement = connection.prepare(ids)?;
        let mut rows = statement.query([oldest])?;
        while let Some(row) = rows.next()? {
            recent.insert(Uuid::from_bytes(row.get(1)?), Seq(row.get(0)?));
        }
        drop(rows);
        drop(statement);

        // A sink whose cursor is damaged starts again at the oldest event.
        let unknown = SavedCursor {
            seq: Seq(first.0 - 1),
            pins: true,
        };
        let mut saved_cursors = BTreeMap::new();
        for (sink, cursor) in SavedCursor::load_all(&connection)? {
            if cursor.is_none() {
                report.cursors.push(sink.clone());
            }
            saved_cursors.insert(sink, cursor.unwrap_or(unknown));
        }
        let number = |sql| connection.query_row(sql, [], |row| row.get::<_, u64>(0));
        let spool_id = "SELECT spool_id FROM identity";
        let spool_id = connection.query_row(spool_id, [], |row| row.get(0))?;
        let mut store = Self {
            spool_id: Uuid::from_bytes(spool_id),
            first,
            next: last.next(),
            usage: Usage::read(&connection)?,
            recent,
            saved_cursors,
            dead_letters: number("SELECT count(*) FROM dead_letters")?,
            dead_letter_bytes: number(
                "SELECT coalesce(sum(octet_length(body)), 0) FROM dead_letters",
            )?,
            rejected_bytes: 0,
            report,
            lock: Arc::clone(lock),
            config: config.clone(),
            connection,
        };
        let forwarded = store.forwarded(&BTreeMap::new());
        store.rejected_bytes = rejected_bytes(&store.connection, forwarded)?;
        Ok(store)
    }

    /// Makes sure that every configured sink has a cursor on disk. Deletes the cursor of stdout if it is not the sink.
    /// Marks the cursors of removed sinks that had confirmed everything as pinning nothing, until the sink is
    /// configured again.
    pub(in crate::spool) fn reconcile_cursors(
        &mut self,
        sinks: &[&str],
    ) -> Result<(), AppendError> {
        let start = Seq(self.first.0 - 1);
        let mut reconciled = BTreeMap::new();
        for sink in sinks {
            let saved = self.saved_cursors.get(*sink).map(|cursor| cursor.seq);
            // If a file was quarantined in this start, a missing cursor may have been lost with it.
            let is_missing = saved.is_none() && self.report.quarantined.is_some();
            if is_missing && !self.report.cursors.iter().any(|named| named == sink) {
                self.report.cursors.push((*sink).to_owned());
            }
            // Events may have been purged while this sink was removed and pinned none.
            let cursor = SavedCursor {
                seq: saved.map_or(start, |seq| seq.max(start)),
                pins: true,
            };
            reconciled.insert((*sink).to_owned(), cursor);
        }
        for (sink, cursor) in &self.saved_cursors {
            if !sinks.contains(&sink.as_str()) && sink != STDOUT {
                let pins = cursor.pins && cursor.seq < self.last();
                reconciled.insert(sink.clone(), SavedCursor { pins, ..*cursor });
            }
        }
        self.transaction(|connection| {
            save_cursors(connection, &reconciled)?;
            if !reconciled.contains_key(STDOUT) {
                connection.execute("DELETE FROM cursors WHERE sink = ?1", [STDOUT])?;
            }
            Ok(())
        })?;
        self.saved_cursors = reconciled;
        Ok(())
    }

    /// Deletes a sink's cursor. Returns whether there was one.
    pub(in crate::spool) fn forget(&mut self, sink: &str) -> Result<bool, AppendError> {
        let mut deleted = 0;
        self.transaction(|connection| {
            deleted = connection.execute("DELETE FROM cursors WHERE sink = ?1", [sink])?;
            Ok(())
        })?;
        self.saved_cursors.remove(sink);
        Ok(deleted > 0)
    }
}

/// The file's application id, version, and number of tables and indices.
fn identify(connection: &Connection) -> rusqlite::Result<(i32, i32, i64)> {
    Ok((
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?,
        connection.pragma_query_value(None, "user_version", |row| row.get(0))?,
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?,
    ))
}

/// Wraps our own reason why the spool cannot be opened in SQLite's error type.
fn invalid(reason: String) -> rusqlite::Error {
    error_of(ffi::SQLITE_IOERR, reason)
}

fn error_of(code: i32, reason: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(reason))
}

#[cfg(test)]
mod tests;
