//! State that the writer's thread, the readers and the handles share.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use uuid::Uuid;

use super::append::AppendError;
use super::config::Config;
use super::cursor::Cursor;
use super::event_cache::EventCache;
use super::files::Lock;
use super::fill::FillMonitor;
use super::gaps::Gap;
use super::salvage::SalvageReport;
use super::stall::StallDetector;
use super::status::Status;
use crate::event::Seq;

/// The shared state of an open spool.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) spool_id: Uuid,
    /// The settings; `path` has no symbolic links.
    pub(super) config: Config,
    pub(super) status: watch::Sender<Status>,
    /// Cancelled when the spool fails permanently. Unlike `status`, it does not wake its waiters for every commit.
    pub(super) failed: CancellationToken,
    pub(super) cursors: BTreeMap<String, Cursor>,
    /// Does not change while the spool is open: only a start adds gaps.
    pub(super) gaps: Vec<Gap>,
    pub(super) unreadable: Mutex<BTreeSet<Seq>>,
    pub(super) stall: StallDetector,
    pub(super) fill: FillMonitor,
    pub(super) commit_seconds: Histogram,
    pub(super) cache: EventCache,
    pub(super) report: SalvageReport,
    /// Quarantined files that are still beside the spool.
    pub(super) quarantined: Mutex<Vec<PathBuf>>,
    pub(super) lock: Arc<Lock>,
}

impl Shared {
    pub(super) fn unreadable(&self) -> MutexGuard<'_, BTreeSet<Seq>> {
        self.unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn quarantined(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.quarantined
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Every configured sink has confirmed all events up to this one.
    pub(super) fn confirmed(&self) -> Seq {
        let lowest = self.cursors.values().map(Cursor::position).min();
        lowest.unwrap_or_default()
    }

    /// Counts an event as damaged, and logs it once.
    pub(super) fn found_unreadable(&self, seq: Seq) {
        if self.unreadable().insert(seq) {
            error!(
                code = "event_unreadable", %seq,
                "event in the spool is damaged and is not published; check the disk"
            );
        }
    }

    /// Stops the work on a damaged file; the next start salvages it.
    pub(super) fn found_damage(&self, what: &str) {
        if let Err(error) = self.lock.mark_damaged() {
            warn!(
                code = "damage_mark_failed", %error,
                "could not mark the spool as damaged, so the next start may not salvage it; check the disk"
            );
        }
        self.refuse(AppendError::Damaged(what.to_owned()));
    }

    /// Refuses all events from now on.
    pub(super) fn refuse(&self, reason: AppendError) {
        self.status.send_if_modified(|status| {
            let first = !status.refusing.as_ref().is_some_and(AppendError::is_final);
            if first {
                error!(
                    code = "spool_failed", %reason,
                    "spool has failed: callbacks are refused, and the relay exits to be restarted; check the disk"
                );
                status.refusing = Some(reason);
            }
            first
        });
        self.failed.cancel();
    }
}
