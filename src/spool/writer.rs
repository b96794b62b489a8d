//! The writer's thread: takes everything that is queued, commits it in one transaction, and wakes all waiters.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::append::{AppendError, Appended};
use super::config::Config;
use super::cursor::Cursor;
use super::event_cache::EventCache;
use super::fill::FillMonitor;
use super::queue::{Queue, WriterCommand};
use super::quota::{ENOUGH, HEADROOM};
use super::shared::Shared;
use super::stall::StallDetector;
use super::status::Status;
use super::store::Store;
use super::suspected_damage::SuspectedDamage;
use super::{OpenError, Opened, QueueHandle, Spool, permissions, salvage};
use crate::event::Event;
use crate::telemetry::Reminder;

/// The maximum number of events in a transaction: it bounds the transaction's time on a slow disk.
const MAX_GROUP: usize = 1024;

/// The interval at which cursors are saved, if nothing is appended, and old events are purged.
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(100);

/// While more events are to be purged, the pause after each purge, as a multiple of the purge's time: callbacks that
/// arrive during a purge wait for it.
const PURGE_PAUSE: u32 = 3;

/// From a fast disk to one that nearly hangs. The vendor waits 2 s.
const COMMIT_SECONDS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0,
    5.0, 10.0,
];

pub(super) fn open(config: &Config, sinks: &[&str]) -> Result<Opened, OpenError> {
    let failed = |source| OpenError::Files {
        path: config.path.clone(),
        source,
    };
    let prepare = |store: &mut Store| store.reconcile_cursors(sinks).and_then(|()| store.gaps());
    let mut store = Store::open(config)?;
    let gaps = match prepare(&mut store) {
        // Opening the file did not detect this damage. Mark it, so that the next opening salvages.
        Err(AppendError::Damaged(what)) => {
            error!(
                code = "spool_damaged",
                reason = what,
                "spool is damaged: salvaging what can be read before callbacks are accepted; check the disk"
            );
            store.lock.mark_damaged().map_err(failed)?;
            drop(store);
            store = Store::open(config)?;
            prepare(&mut store)
        }
        outcome => outcome,
    }
    .map_err(|error| failed(io::Error::other(error)))?;
    let saved = &store.saved_cursors;
    let cursors: BTreeMap<String, Cursor> = saved
        .iter()
        .filter(|(sink, _)| sinks.contains(&sink.as_str()))
        .map(|(sink, saved)| (sink.clone(), Cursor::new(saved.seq)))
        .collect();
    // Sinks that were removed before they had confirmed everything.
    let orphans = saved
        .iter()
        .filter(|(sink, saved)| saved.pins && !cursors.contains_key(*sink))
        .map(|(sink, saved)| (sink.clone(), store.last().0.saturating_sub(saved.seq.0)))
        .collect();
    // The high-water mark of an earlier run may be older than the file: its writes are not synced.
    store.write_watermark(&cursors);
    store.report.log();
    let quarantined = salvage::quarantined(&store.config.path).unwrap_or_default();
    permissions::make_private(&store.config.path, &quarantined);

    let shared = Arc::new(Shared {
        spool_id: store.spool_id,
        config: store.config.clone(),
        status: watch::Sender::new(Status {
            refusing: None,
            first: store.first,
            last: store.last(),
            used_bytes: store.usage.used_bytes,
            dead_letters: store.dead_letters,
            capacity_bytes: config.max_bytes.0,
            available_bytes: config.max_bytes.0,
        }),
        failed: CancellationToken::new(),
        cursors,
        gaps,
        unreadable: Mutex::default(),
        stall: StallDetector::default(),
        fill: FillMonitor::default(),
        commit_seconds: Histogram::new(COMMIT_SECONDS),
        cache: EventCache::default(),
        report: store.report.clone(),
        quarantined: Mutex::new(quarantined),
        lock: Arc::clone(&store.lock),
    });
    let queue = Arc::new(Queue::new(config.max_waiting));
    let path = store.config.path.clone();
    let mut writer = Writer {
        store,
        appending: SuspectedDamage::default(),
        maintaining: SuspectedDamage::default(),
        queue: Arc::clone(&queue),
        shared: Arc::clone(&shared),
        maintenance_due: Instant::now(),
        capacity_bytes: config.max_bytes.0,
        refusal_log: RefusalLog::default(),
        closed: false,
    };
    // From the first moment the state must say whether callbacks are accepted: the spool or its disk may be full.
    writer
        .maintain()
        .map_err(|error| failed(io::Error::other(error)))?;
    let thread = thread::Builder::new()
        .name("spool".to_owned())
        .spawn(move || writer.run())
        .map_err(failed)?;
    Ok(Opened {
        spool: Spool {
            queue: Arc::new(QueueHandle(queue)),
            shared,
            path,
            writer: Arc::new(Mutex::new(Some(thread))),
        },
        orphans,
    })
}

struct Writer {
    store: Store,
    /// Separate from `maintaining`: appends may fail while the maintenance succeeds, and vice versa.
    appending: SuspectedDamage,
    maintaining: SuspectedDamage,
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    maintenance_due: Instant,
    /// Bytes that events and dead letters may take, as the last maintenance has measured.
    capacity_bytes: u64,
    refusal_log: RefusalLog,
    /// The writer was closed and has ended gracefully.
    closed: bool,
}

/// When the thread ends for any reason, including a panic, the spool refuses further events.
impl Drop for Writer {
    fn drop(&mut self) {
        if !self.closed {
            self.shared.refuse(AppendError::Failed(
                "writer thread has ended unexpectedly".to_owned(),
            ));
        }
        self.queue.abandon();
    }
}

/// A waiter, and the memory permit that is released with the answer.
type Waiter = (
    oneshot::Sender<Result<Appended, AppendError>>,
    Option<OwnedSemaphorePermit>,
);

/// Sends the outcome to the waiter, and returns its error.
fn answer<T: Clone>(
    reply: oneshot::Sender<Result<T, AppendError>>,
    outcome: Result<T, AppendError>,
) -> Result<(), AppendError> {
    // The waiter may be gone.
    let _ = reply.send(outcome.clone());
    outcome.map(drop)
}

impl Writer {
    fn run(mut self) {
        let mut events = Vec::with_capacity(MAX_GROUP);
        let mut waiters = Vec::with_capacity(MAX_GROUP);
        loop {
            let timeout = self
                .maintenance_due
                .saturating_duration_since(Instant::now());
            let taken = self.queue.take(MAX_GROUP, timeout);
            self.shared.stall.begin();
            // `None`: the last handle to the spool was dropped without a `Close`.
            let mut closing = taken.is_none();
            let mut others = Vec::new();
            for command in taken.into_iter().flatten() {
                match command {
                    WriterCommand::Append(append) => {
                        events.push(append.event);
                        waiters.push((append.reply, append.permit));
                    }
                    WriterCommand::Close => closing = true,
                    other => others.push(other),
                }
            }
            if self
                .work(&mut events, &mut waiters, others, closing)
                .is_err()
            {
                return;
            }
            if closing {
                if let Err(error) = self.store.checkpoint_all() {
                    let _ = self.handle_error(&error, |writer| &mut writer.maintaining);
                }
                self.closed = true;
                return;
            }
            self.shared.stall.end();
        }
    }

    /// Executes the commands that were taken, and the maintenance if it is due. An error ends the thread.
    fn work(
        &mut self,
        events: &mut Vec<Arc<Event>>,
        waiters: &mut Vec<Waiter>,
        others: Vec<WriterCommand>,
        closing: bool,
    ) -> Result<(), AppendError> {
        if !events.is_empty() {
            self.commit(events, waiters)?;
        }
        for command in others {
            match self.execute(command) {
                // Whoever sent the command reports it; callbacks may still be accepted.
                Ok(()) | Err(AppendError::Full(_) | AppendError::DeadLettersFull(_)) => {}
                Err(error) => self.handle_error(&error, |writer| &mut writer.appending)?,
            }
        }
        if let Err(error) = self.store.checkpoint() {
            self.handle_error(&error, |writer| &mut writer.maintaining)?;
        }
        if closing || self.maintenance_due <= Instant::now() {
            self.maintain()?;
        }
        Ok(())
    }

    /// Executes a command that appends no event, and answers its waiter.
    fn execute(&mut self, command: WriterCommand) -> Result<(), AppendError> {
        let (store, cursors) = (&mut self.store, &self.shared.cursors);
        match command {
            WriterCommand::StoreDeadLetters {
                dead_letters,
                reply,
            } => answer(reply, store.store_dead_letters(&dead_letters, cursors)),
            WriterCommand::RemoveDeadLetters {
                dead_letters,
                reply,
            } => answer(reply, store.remove_dead_letters(&dead_letters)),
            WriterCommand::Forget { sink, reply } => answer(reply, store.forget(&sink)),
            WriterCommand::Append(_) | WriterCommand::Close => Ok(()),
        }
    }

    /// Commits a group and answers its waiters. An error ends the thread.
    fn commit(
        &mut self,
        events: &mut Vec<Arc<Event>>,
        waiters: &mut Vec<Waiter>,
    ) -> Result<(), AppendError> {
        let began = Instant::now();
        let outcome = self.store.append(events, &self.shared.cursors);
        let took = began.elapsed();
        let events = events.drain(..);
        match &outcome {
            Ok(outcomes) => {
                self.appending.clear();
                // Otherwise nothing was committed.
                if outcomes
                    .iter()
                    .any(|one| matches!(one, Ok(Appended::New(_))))
                {
                    self.shared.commit_seconds.observe(took.as_secs_f64());
                }
                let appended = events
                    .zip(outcomes)
                    .filter_map(|(event, outcome)| match *outcome {
                        Ok(Appended::New(seq)) => Some((seq, event)),
                        _ => None,
                    });
                self.shared.cache.add(appended);
                let is_full = |error: &&AppendError| matches!(error, AppendError::Full(_));
                let full = outcomes
                    .iter()
                    .filter_map(|outcome| outcome.as_ref().err())
                    .find(is_full);
                // Only the maintenance clears the full state: a smaller event may fit when the last one did not.
                self.publish_status(match (full, self.refusing()) {
                    (Some(full), _) if self.store.free_space().bytes < HEADROOM => {
                        Some(full.clone())
                    }
                    (_, full @ Some(AppendError::Full(_))) => full,
                    _ => None,
                });
                for ((reply, permit), outcome) in waiters.drain(..).zip(outcomes) {
                    // Release it before the answer: the client may send the next callback at once.
                    drop(permit);
                    // The client may have disconnected; the event is stored all the same.
                    let _ = reply.send(outcome.clone());
                }
                Ok(())
            }
            Err(error) => {
                for (reply, permit) in waiters.drain(..) {
                    drop(permit);
                    let _ = reply.send(Err(error.clone()));
                }
                self.handle_error(error, |writer| &mut writer.appending)
            }
        }
    }

    /// Saves the cursors, purges expired events, and checks whether there is space again.
    fn maintain(&mut self) -> Result<(), AppendError> {
        let began = Instant::now();
        // An operator may have removed quarantined files.
        if !self.shared.quarantined().is_empty()
            && let Ok(quarantined) = salvage::quarantined(&self.store.config.path)
        {
            *self.shared.quarantined() = quarantined;
        }
        let cursors = &self.shared.cursors;
        let refusing = self.refusing();
        // After a failed write, a probe checks whether writing works again.
        let may_work_again = matches!(refusing, Some(AppendError::Io(_)));
        let enough = match refusing {
            Some(AppendError::Full(_)) => ENOUGH,
            _ => HEADROOM,
        };
        let outcome = self.store.save_cursors(cursors).and_then(|()| {
            if may_work_again {
                self.store.probe()?;
            }
            self.store.count_rejected(cursors)?;
            let more = self.store.purge_expired(cursors)?;
            Ok((more, self.store.make_space(enough, cursors)?))
        });
        let pause = match outcome {
            Ok((true, _)) => (began.elapsed() * PURGE_PAUSE).min(MAINTENANCE_INTERVAL),
            _ => MAINTENANCE_INTERVAL,
        };
        self.maintenance_due = Instant::now() + pause;
        match outcome {
            Ok((_, free)) => {
                self.maintaining.clear();
                self.capacity_bytes = self.store.usage.used_bytes.saturating_add(free.bytes);
                let full = free.bytes < enough;
                self.publish_status(full.then(|| AppendError::Full(self.store.explain(free))));
                Ok(())
            }
            Err(error) => self.handle_error(&error, |writer| &mut writer.maintaining),
        }
    }

    fn refusing(&self) -> Option<AppendError> {
        self.shared.status.borrow().refusing.clone()
    }

    /// Publishes an error; returns `Err` if it ends the thread.
    fn handle_error(
        &mut self,
        error: &AppendError,
        suspicion: fn(&mut Self) -> &mut SuspectedDamage,
    ) -> Result<(), AppendError> {
        match error {
            AppendError::Damaged(what) => {
                self.publish_status(Some(AppendError::Io(what.clone())));
                if suspicion(self).confirm() {
                    self.shared.found_damage(what);
                }
            }
            AppendError::Failed(_) => self.shared.refuse(error.clone()),
            _ => self.publish_status(Some(error.clone())),
        }
        match self.refusing() {
            Some(error) if error.is_final() => Err(error),
            _ => Ok(()),
        }
    }

    /// Publishes the spool's state, and logs whether callbacks are refused. A final error stays.
    fn publish_status(&mut self, refusing: Option<AppendError>) {
        let pinned_bytes = self.store.pinned_bytes(&self.shared.cursors);
        self.shared.status.send_modify(|status| {
            status.first = self.store.first;
            status.last = self.store.last();
            status.used_bytes = self.store.usage.used_bytes;
            status.dead_letters = self.store.dead_letters;
            status.capacity_bytes = self.capacity_bytes;
            status.available_bytes = self.capacity_bytes.saturating_sub(pinned_bytes);
            if status.refusing.as_ref().is_some_and(AppendError::is_final) {
                return;
            }
            self.refusal_log.update(refusing.as_ref(), Instant::now());
            status.refusing = refusing;
        });
    }
}

/// Logs that callbacks are refused, for as long as it lasts, and when they are accepted again.
#[derive(Debug, Default)]
struct RefusalLog(Option<Reminder>);

impl RefusalLog {
    fn update(&mut self, refusing: Option<&AppendError>, now: Instant) {
        if let Some(reason) = refusing {
            let reminder = self.0.get_or_insert_with(|| Reminder::new(now));
            if let Some(lasted) = reminder.due_for(&reason.to_string(), now) {
                error!(
                    code = "callbacks_refused", %reason, seconds = lasted.as_secs(),
                    "callbacks are refused with 503, and the vendor does not repeat them; fix the cause"
                );
            }
        } else if self.0.take().is_some() {
            info!(code = "callbacks_accepted", "callbacks are accepted again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::CapturedLog;

    #[test]
    fn each_reason_for_refusing_is_logged_once_and_the_state_is_repeated() {
        let began = Instant::now();
        let mut refusals = RefusalLog::default();
        let lines = CapturedLog::default().lines(|| {
            for tenth in 0..=610_u32 {
                let full = AppendError::Full(format!("{tenth} bytes left"));
                let failed = AppendError::Io("write failed".to_owned());
                let reason = if tenth % 2 == 0 { full } else { failed };
                refusals.update(Some(&reason), began + Duration::from_millis(100) * tenth);
            }
            refusals.update(None, began);
            refusals.update(None, began);
        });
        let codes: Vec<_> = lines
            .iter()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let expected = [
            "callbacks_refused",
            "callbacks_refused",
            "callbacks_refused",
            "callbacks_accepted",
        ];
        assert_eq!(codes, expected, "{lines:?}");
        for (line, seconds) in lines.iter().zip(["seconds=0", "seconds=0", "seconds=60"]) {
            assert!(line.contains(seconds), "{line}");
        }
    }
}
