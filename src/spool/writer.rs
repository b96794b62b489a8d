//! The writer's thread: takes everything that is waiting, commits it at once, wakes those who wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::busy::Busy;
use super::fresh::Fresh;
use super::queue::{Command, Queue};
use super::rescue;
use super::room::{ENOUGH, HEADROOM};
use super::store::Store;
use super::{
    AppendError, Appended, Config, Cursor, Entrance, OpenError, Opened, Shared, Spool, Status,
};
use crate::event::{Event, Seq, Stored};

/// Events that one transaction holds at most: what bounds its time on a slow disk.
const GROUP: usize = 1024;

/// Where the writer's doubts are, behind all events: what works for one need not for the other.
const APPENDING: Seq = Seq(u64::MAX);
const UPKEEPING: Seq = Seq(u64::MAX - 1);

/// How often cursors are saved while nothing is appended, and old events deleted.
const UPKEEP: Duration = Duration::from_millis(100);

/// While more old events are to be deleted: the pause after some were, as a multiple of the time that it took.
/// Whoever appends meanwhile waits for them, and a backlog that goes out leaves many at once.
const DELETE_PAUSE: u32 = 3;

pub(super) fn open(config: &Config, sinks: &[&str]) -> Result<Opened, OpenError> {
    let mut store = Store::open(config)?;
    store
        .settle_cursors(sinks)
        .map_err(|error| OpenError::Files {
            path: config.path.clone(),
            source: std::io::Error::other(error),
        })?;
    let saved = store.saved_cursors();
    let cursors: BTreeMap<String, Cursor> = saved
        .iter()
        .filter(|(sink, _)| sinks.contains(&sink.as_str()))
        .map(|(sink, saved)| (sink.clone(), Cursor::new(saved.seq)))
        .collect();
    let last = store.last();
    let orphans = saved
        .iter()
        .filter(|(sink, saved)| saved.holds && !cursors.contains_key(*sink))
        .map(|(sink, saved)| (sink.clone(), last.0.saturating_sub(saved.seq.0)))
        .collect();
    store.write_note(&cursors);
    store.findings().log();

    let shared = Arc::new(Shared {
        spool_id: store.spool_id(),
        status: watch::Sender::new(Status {
            refusing: None,
            first: store.first(),
            last,
            used_bytes: store.usage().used_bytes,
        }),
        failed: CancellationToken::new(),
        cursors,
        unreadable: Mutex::default(),
        busy: Busy::default(),
        fresh: Fresh::default(),
        doubts: Mutex::default(),
        findings: store.findings().clone(),
        put_aside: Mutex::new(rescue::put_aside(&config.path).unwrap_or_default()),
        lost: store.lost(),
        lock: Arc::clone(store.lock()),
    });
    let queue = Arc::new(Queue::new(config.max_waiting));
    let writer = Writer {
        store,
        queue: Arc::clone(&queue),
        shared: Arc::clone(&shared),
        upkeep_due: Instant::now(),
        closed: false,
    };
    writer.tell(None);
    let thread = thread::Builder::new()
        .name("spool".to_owned())
        .spawn(move || writer.run())
        .map_err(|source| OpenError::Files {
            path: config.path.clone(),
            source,
        })?;
    Ok(Opened {
        spool: Spool {
            entrance: Arc::new(Entrance(queue)),
            shared,
            path: config.path.clone(),
            writer: Arc::new(Mutex::new(Some(thread))),
        },
        orphans,
    })
}

struct Writer {
    store: Store,
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    upkeep_due: Instant,
    /// Its end was asked for, and went well.
    closed: bool,
}

/// Whatever ended the thread, a panic included: nothing is appended any more.
impl Drop for Writer {
    fn drop(&mut self) {
        if !self.closed {
            self.shared
                .refuse(AppendError::Failed("its writer has ended".to_owned()));
        }
        self.queue.abandon();
    }
}

/// Who waits for an answer, and the room that is given back with it.
type Waiting = (
    oneshot::Sender<Result<Appended, AppendError>>,
    Option<OwnedSemaphorePermit>,
);

impl Writer {
    fn run(mut self) {
        let mut events = Vec::with_capacity(GROUP);
        let mut waiting = Vec::with_capacity(GROUP);
        let mut letters = Vec::new();
        loop {
            let patience = self.upkeep_due.saturating_duration_since(Instant::now());
            let taken = self.queue.take(GROUP, patience);
            self.shared.busy.begin();
            let mut closing = taken.is_none();
            for command in taken.into_iter().flatten() {
                match command {
                    Command::Append(append) => {
                        events.push(append.event);
                        waiting.push((append.reply, append.room));
                    }
                    Command::SetAside { letter, reply } => letters.push((letter, reply)),
                    Command::Close => closing = true,
                }
            }
            if !events.is_empty() && self.commit(&mut events, &mut waiting).is_err() {
                return;
            }
            for (letter, reply) in letters.drain(..) {
                let outcome = self.store.set_aside(&letter);
                let _ = reply.send(outcome.clone());
                if outcome.is_err_and(|error| self.survive(&error, APPENDING).is_err()) {
                    return;
                }
            }
            if self
                .store
                .checkpoint()
                .or_else(|error| self.survive(&error, UPKEEPING))
                .is_err()
            {
                return;
            }
            let upkeep = if closing || self.upkeep_due <= Instant::now() {
                self.upkeep()
            } else {
                Ok(())
            };
            if upkeep.is_err() {
                return;
            }
            if closing {
                if let Err(error) = self.store.checkpoint_all() {
                    let _ = self.survive(&error, UPKEEPING);
                }
                self.closed = true;
                return;
            }
            self.shared.busy.end();
        }
    }

    /// Commits a group and answers those who wait. An error ends the thread.
    fn commit(
        &mut self,
        events: &mut Vec<Event>,
        waiting: &mut Vec<Waiting>,
    ) -> Result<(), AppendError> {
        let outcome = self.store.append(events, &self.shared.cursors);
        let events = events.drain(..);
        match &outcome {
            Ok(outcomes) => {
                self.shared.trust(APPENDING);
                let appended = events
                    .zip(outcomes)
                    .filter_map(|(event, outcome)| match *outcome {
                        Ok(Appended::New(seq)) => Some(Stored { seq, event }),
                        _ => None,
                    });
                self.shared.fresh.remember(appended);
                let refused = outcomes.iter().find_map(|outcome| outcome.as_ref().err());
                // Whether a full spool has room again is for the upkeep to say: a smaller event may fit
                // where the last did not.
                self.tell(match (refused, self.refusing()) {
                    (Some(full), _) if self.store.room().bytes < HEADROOM => Some(full.clone()),
                    (_, full @ Some(AppendError::Full(_))) => full,
                    _ => None,
                });
                for ((reply, room), outcome) in waiting.drain(..).zip(outcomes) {
                    // Before the answer: whoever has it may come again at once.
                    drop(room);
                    // Whoever asked may have gone; the event is kept all the same.
                    let _ = reply.send(outcome.clone());
                }
                Ok(())
            }
            Err(error) => {
                for (reply, room) in waiting.drain(..) {
                    drop(room);
                    let _ = reply.send(Err(error.clone()));
                }
                self.survive(error, APPENDING)
            }
        }
    }

    /// Saves the cursors, deletes what is over, and looks whether there is room again.
    fn upkeep(&mut self) -> Result<(), AppendError> {
        let began = Instant::now();
        self.shared.look_for_put_aside();
        let cursors = &self.shared.cursors;
        let refusing = self.refusing();
        let doubtful = matches!(refusing, Some(AppendError::Io(_)));
        let enough = match refusing {
            Some(AppendError::Full(_)) => ENOUGH,
            _ => HEADROOM,
        };
        let done = self.store.save_cursors(cursors).and_then(|()| {
            if doubtful {
                self.store.probe()?;
            }
            let more = self.store.expire(cursors)?;
            Ok((more, self.store.make_room(enough, cursors)?))
        });
        let pause = match done {
            Ok((true, _)) => (began.elapsed() * DELETE_PAUSE).min(UPKEEP),
            _ => UPKEEP,
        };
        self.upkeep_due = Instant::now() + pause;
        match done {
            Ok((_, room)) => {
                self.shared.trust(UPKEEPING);
                let full = room.bytes < enough;
                self.tell(full.then(|| AppendError::Full(self.store.explain(room))));
                Ok(())
            }
            Err(error) => self.survive(&error, UPKEEPING),
        }
    }

    fn refusing(&self) -> Option<AppendError> {
        self.shared.status.borrow().refusing.clone()
    }

    /// Tells of an error; returns it where the thread must not go on after it.
    fn survive(&self, error: &AppendError, work: Seq) -> Result<(), AppendError> {
        match error {
            AppendError::Damaged(what) => {
                self.tell(Some(AppendError::Io(what.clone())));
                self.shared.doubt(work, what);
            }
            AppendError::Failed(_) => self.shared.refuse(error.clone()),
            _ => self.tell(Some(error.clone())),
        }
        match self.refusing() {
            Some(error) if error.is_final() => Err(error),
            _ => Ok(()),
        }
    }

    /// Tells everybody how things stand, and the log when that changes. What failed for good stays so.
    fn tell(&self, refusing: Option<AppendError>) {
        let used_bytes = self.store.usage().used_bytes;
        self.shared.status.send_modify(|status| {
            status.first = self.store.first();
            status.last = self.store.last();
            status.used_bytes = used_bytes;
            if status.refusing.as_ref().is_some_and(AppendError::is_final) {
                return;
            }
            match (&status.refusing, &refusing) {
                (None, Some(reason)) => warn!(%reason, "callbacks are refused"),
                (Some(_), None) => info!("callbacks are accepted again"),
                _ => {}
            }
            status.refusing = refusing;
        });
    }
}
