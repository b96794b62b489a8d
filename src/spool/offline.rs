//! Changes the spool of a relay that is not running.

use std::collections::BTreeMap;

use super::append::AppendError;
use super::config::Config;
use super::store::{OpenError, Store};
use crate::event::Seq;

/// The spool of a relay that is not running. While it is held, no relay can start on it, so hold it briefly.
#[derive(Debug)]
pub struct Offline(Store);

impl Offline {
    /// Takes the spool's lock and opens the file. Neither creates nor salvages it. Blocks.
    ///
    /// # Errors
    /// Fails if a process has the spool open, if there is no spool, or if it is damaged, foreign or of a newer version.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        Store::open_existing(config).map(Self)
    }

    /// Deletes dead letters, named by sink and number. Returns how many there were.
    ///
    /// # Errors
    /// Fails if the file cannot be written; then none was deleted.
    pub fn remove_dead_letters(
        &mut self,
        dead_letters: &[(String, Seq)],
    ) -> Result<u64, AppendError> {
        self.0.remove_dead_letters(dead_letters)
    }

    /// Deletes the cursor of a sink, so that it no longer pins events; `Ok(false)` if there is no such cursor.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn forget(&mut self, sink: &str) -> Result<bool, AppendError> {
        let forgotten = self.0.forget(sink)?;
        // Without the cursor, more events count as confirmed.
        self.0.write_watermark(&BTreeMap::new());
        Ok(forgotten)
    }
}
