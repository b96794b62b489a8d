//! What the writer's thread, the readers and everybody else tell each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;
use uuid::Uuid;

use super::busy::Busy;
use super::files::Lock;
use super::fresh::Fresh;
use super::{AppendError, Cursor, Findings, Status};
use crate::event::Seq;

/// What looks damaged for so long is damaged.
const DOUBT: Duration = if cfg!(any(test, fuzzing)) {
    Duration::from_millis(100)
} else {
    Duration::from_secs(5)
};

/// Places that are in doubt at once.
const DOUBTS: usize = 64;

/// What is known of the open spool.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) spool_id: Uuid,
    pub(super) status: watch::Sender<Status>,
    /// Cancelled when it has failed for good: who waits for that need not look at every commit.
    pub(super) failed: CancellationToken,
    pub(super) cursors: BTreeMap<String, Cursor>,
    pub(super) unreadable: Mutex<BTreeSet<Seq>>,
    pub(super) busy: Busy,
    pub(super) fresh: Fresh,
    /// Where the file looks damaged, and since when.
    pub(super) doubts: Mutex<BTreeMap<Seq, Instant>>,
    pub(super) findings: Findings,
    /// Damaged files that are still beside the spool. Only a start puts one there.
    pub(super) put_aside: Mutex<Vec<PathBuf>>,
    pub(super) lost: u64,
    pub(super) lock: Arc<Lock>,
}

impl Shared {
    pub(super) fn unreadable(&self) -> MutexGuard<'_, BTreeSet<Seq>> {
        self.unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put_aside(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.put_aside
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the damaged files that somebody has removed.
    pub(super) fn look_for_put_aside(&self) {
        let found = self.put_aside().clone();
        let gone = |path: &PathBuf| fs::exists(path).is_ok_and(|exists| !exists);
        // Not while the list is locked: the disk may hang.
        let gone: Vec<PathBuf> = found.into_iter().filter(gone).collect();
        self.put_aside().retain(|path| !gone.contains(path));
    }

    /// Notes that an event is lost; the log hears of each once.
    pub(super) fn found_unreadable(&self, seq: Seq) {
        if self.unreadable().insert(seq) {
            error!(%seq, "an event in the spool is damaged and cannot be published");
        }
    }

    /// What lies behind `position` looks damaged. A disk that does not give back what it has looks the same
    /// to SQLite (`SQLITE_IOERR_CORRUPTFS`), and may do so again: only what lasts is damage.
    pub(super) fn doubt(&self, position: Seq, what: &str) {
        let mut doubts = self.doubts();
        let since = *doubts.entry(position).or_insert_with(Instant::now);
        if doubts.len() > DOUBTS {
            doubts.pop_first();
        }
        drop(doubts);
        if since.elapsed() >= DOUBT {
            self.found_damage(what);
        }
    }

    /// What lies behind `position` is right.
    pub(super) fn trust(&self, position: Seq) {
        self.doubts().remove(&position);
    }

    fn doubts(&self) -> MutexGuard<'_, BTreeMap<Seq, Instant>> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the work on a file that turned out to be damaged; the next start rescues what it holds.
    pub(super) fn found_damage(&self, what: &str) {
        if let Err(error) = self.lock.mark_damaged() {
            error!(%error, "the damage of the spool could not be noted for the next start");
        }
        self.refuse(AppendError::Damaged(what.to_owned()));
    }

    /// Refuses all events from now on, whatever comes later.
    pub(super) fn refuse(&self, reason: AppendError) {
        self.status.send_if_modified(|status| {
            let first = !status.refusing.as_ref().is_some_and(AppendError::is_final);
            if first {
                error!(error = %reason, "the spool failed");
                status.refusing = Some(reason);
            }
            first
        });
        self.failed.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::thread::park_timeout;

    use tempfile::TempDir;

    use super::*;
    use crate::spool::files;

    fn shared(folder: &TempDir) -> Shared {
        Shared {
            spool_id: Uuid::nil(),
            status: watch::Sender::new(Status {
                refusing: None,
                first: Seq(1),
                last: Seq(0),
                used_bytes: 0,
            }),
            failed: CancellationToken::new(),
            cursors: BTreeMap::new(),
            unreadable: Mutex::default(),
            busy: Busy::default(),
            fresh: Fresh::default(),
            doubts: Mutex::default(),
            findings: Findings::default(),
            put_aside: Mutex::default(),
            lost: 0,
            lock: Arc::new(files::lock(&folder.path().join("spool.db")).unwrap()),
        }
    }

    fn is_damaged(shared: &Shared) -> bool {
        let refusing = shared.status.borrow().refusing.clone();
        matches!(refusing, Some(AppendError::Damaged(_)))
    }

    #[test]
    fn what_looks_damaged_is_damage_once_that_has_lasted() {
        let folder = TempDir::new().unwrap();
        let shared = shared(&folder);
        shared.doubt(Seq(7), "a page");
        assert!(!is_damaged(&shared), "not at once");
        park_timeout(DOUBT);
        shared.doubt(Seq(8), "another page");
        assert!(!is_damaged(&shared), "not elsewhere");
        shared.trust(Seq(7));
        shared.doubt(Seq(7), "a page");
        assert!(!is_damaged(&shared), "not where it was right in between");
        park_timeout(DOUBT);
        shared.doubt(Seq(7), "a page");
        assert!(is_damaged(&shared));
        assert!(shared.lock.note().unwrap().unwrap().damaged);
    }

    #[test]
    fn doubts_are_bounded() {
        let folder = TempDir::new().unwrap();
        let shared = shared(&folder);
        for number in 1..=DOUBTS as u64 + 1 {
            shared.doubt(Seq(number), "a page");
        }
        let doubts: Vec<Seq> = shared.doubts().keys().copied().collect();
        assert_eq!(doubts.len(), DOUBTS);
        assert_eq!(doubts[0], Seq(2));
    }
}
