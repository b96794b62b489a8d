//! Lets an answer wait until a broker has confirmed its event (`answer_after = "broker"`).
//!
//! A wait ends at its deadline, and a breaker stops answers from waiting for a broker that misses deadlines. Recalls
//! are then answered OK because their events are on disk, so a broker that is down or slow never costs a callback.

mod breaker;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use self::breaker::{ConfirmBreaker, Wait};
use super::Partitioning;
use crate::event::{Event, Seq};
use crate::telemetry::Reminder;

/// If a breaker opens again within this time, that is the same outage for the log.
const SAME_OUTAGE: Duration = Duration::from_secs(5);

/// What one sink has confirmed, and who waits for it.
#[derive(Debug)]
pub struct Confirms {
    sink: &'static str,
    /// How long after its request an answer waits at most (`answer_deadline`).
    deadline: Duration,
    state: Mutex<ConfirmState>,
}

#[derive(Debug)]
struct ConfirmState {
    /// The cursor: every event up to it is confirmed, dead-lettered in the spool, or unreadable.
    reached: Seq,
    /// The confirmed events after that.
    ahead: BTreeSet<Seq>,
    asked: BTreeMap<Seq, AskedFor>,
    partitioning: Partitioning,
    /// One for each partition, at least one.
    breakers: Vec<ConfirmBreaker>,
    outage: Option<Outage>,
    is_stopped: bool,
}

/// Answers do not wait for some partitions, or did not until a moment ago.
#[derive(Debug)]
struct Outage {
    reminder: Reminder,
    ended: Option<Instant>,
}

/// An unconfirmed event that somebody waits for, or that is a probe.
#[derive(Debug)]
struct AskedFor {
    partition: usize,
    since: Instant,
    waiting: Vec<oneshot::Sender<bool>>,
}

/// Waits for the confirm of one event.
#[derive(Debug)]
pub struct ConfirmWaiter<'a> {
    confirms: &'a Confirms,
    seq: Seq,
    partition: usize,
    /// When the event was on disk.
    since: Instant,
    state: WaiterState,
}

#[derive(Debug)]
enum WaiterState {
    Confirmed,
    /// The breaker is open.
    NotWaiting,
    Waiting(oneshot::Receiver<bool>),
}

impl Confirms {
    /// The confirms of a sink that has confirmed every event up to `reached`.
    #[must_use]
    pub fn new(sink: &'static str, reached: Seq, deadline: Duration) -> Self {
        Self {
            sink,
            deadline,
            state: Mutex::new(ConfirmState {
                reached,
                ahead: BTreeSet::new(),
                asked: BTreeMap::new(),
                partitioning: Partitioning::default(),
                breakers: vec![ConfirmBreaker::default()],
                outage: None,
                is_stopped: false,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, ConfirmState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sink's name.
    #[must_use]
    pub const fn sink(&self) -> &'static str {
        self.sink
    }

    /// Whether answers wait for events of every partition: no breaker is open.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        !self.state().is_any_open(Instant::now())
    }

    /// Whether nothing is kept: nobody waits, and nothing is confirmed ahead of the cursor.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state();
        state.asked.is_empty() && state.ahead.is_empty()
    }

    /// The partition that an event goes to, as far as is known: partitions have a breaker each.
    #[must_use]
    pub fn partition(&self, event: &Event) -> usize {
        let Partitioning {
            count,
            partition_of,
        } = self.state().partitioning;
        partition_of(event, count)
    }

    /// Begins to wait for an event that is on disk, unless it is confirmed or its partition's breaker is open.
    /// `is_cursor_proof` says whether every event up to the cursor is confirmed: none of them is damaged, or stored as a
    /// dead letter.
    #[must_use]
    pub fn waiter(
        &self,
        seq: Seq,
        partition: usize,
        is_cursor_proof: bool,
        now: Instant,
    ) -> ConfirmWaiter<'_> {
        let mut state = self.state();
        let waiter = if state.ahead.contains(&seq) || (seq <= state.reached && is_cursor_proof) {
            WaiterState::Confirmed
        } else if seq <= state.reached || state.is_stopped {
            WaiterState::NotWaiting
        } else {
            match state.breaker(partition).ask(seq, self.deadline, now) {
                Wait::Nobody => WaiterState::NotWaiting,
                Wait::Probe(late) => {
                    if let Some(late) = late {
                        state.forget(late);
                    }
                    state.ask_for(seq, partition, now);
                    WaiterState::NotWaiting
                }
                Wait::Answer => {
                    let (confirmed, receiver) = oneshot::channel();
                    state.ask_for(seq, partition, now).waiting.push(confirmed);
                    WaiterState::Waiting(receiver)
                }
            }
        };
        drop(state);
        ConfirmWaiter {
            confirms: self,
            seq,
            partition,
            since: now,
            state: waiter,
        }
    }

    /// Ends all waits, present and future: the relay stops, and publishes after the next start what is unconfirmed.
    pub fn stop_waiting(&self) {
        let mut state = self.state();
        state.is_stopped = true;
        for (_, asked) in std::mem::take(&mut state.asked) {
            asked.answer(false);
        }
    }

    /// A session has begun that publishes to these partitions.
    pub(crate) fn partitioned(&self, partitioning: Partitioning) {
        let mut state = self.state();
        let count = partitioning.count.max(1);
        if count != state.breakers.len() {
            // The breakers were those of other partitions.
            state.breakers = std::iter::repeat_with(ConfirmBreaker::default)
                .take(count)
                .collect();
        }
        state.partitioning = Partitioning {
            count,
            ..partitioning
        };
    }

    /// The broker has confirmed these.
    pub(crate) fn confirmed(&self, seqs: &[Seq], now: Instant) {
        let mut state = self.state();
        for seq in seqs {
            if *seq > state.reached {
                state.ahead.insert(*seq);
            }
            if let Some(asked) = state.asked.remove(seq) {
                let is_in_time = now.duration_since(asked.since) <= self.deadline;
                state.breaker(asked.partition).ended(*seq, is_in_time);
                asked.answer(true);
            }
        }
    }

    /// The broker has not accepted these, even as dead letters: nobody waits for them any more.
    pub(crate) fn refused(&self, seqs: &[Seq]) {
        let mut state = self.state();
        for seq in seqs {
            state.end(*seq);
        }
    }

    /// The cursor has moved here.
    pub(crate) fn reached(&self, seq: Seq) {
        let mut state = self.state();
        state.reached = state.reached.max(seq);
        state.ahead = state.ahead.split_off(&seq.next());
        // Nothing has confirmed these: they cannot be read, or the cursor has moved to the position at the broker.
        while let Some(first) = state.asked.first_key_value().map(|(first, _)| *first)
            && first <= seq
        {
            state.end(first);
        }
    }

    /// Logs whether answers wait if that has changed, and again if it lasts. Must be called about once a second.
    pub(crate) fn remind(&self, now: Instant) {
        let state = &mut *self.state();
        if state.is_any_open(now) {
            let outage = state.outage.get_or_insert_with(|| Outage {
                reminder: Reminder::new(now.into_std()),
                ended: None,
            });
            outage.ended = None;
            if let Some(lasted) = outage.reminder.due(now.into_std()) {
                warn!(
                    code = "answers_after_disk",
                    sink = self.sink,
                    seconds = lasted.as_secs(),
                    "answers do not wait for the broker, because it did not confirm events by answer_deadline: if this \
                     machine is lost now, recalls that were answered OK are lost, too (recall_at_risk_events counts \
                     them); repair the broker, or make it faster"
                );
            }
        } else if let Some(outage) = &mut state.outage {
            let ended = *outage.ended.get_or_insert(now);
            if now.duration_since(ended) >= SAME_OUTAGE {
                info!(
                    code = "answers_wait_for_broker",
                    sink = self.sink,
                    seconds = outage.reminder.lasted(ended.into_std()).as_secs(),
                    "answers wait for the broker again"
                );
                state.outage = None;
            }
        }
    }

    /// An answer has stopped waiting without a confirm. `waited` is how long it waited for the broker.
    fn missed(&self, partition: usize, waited: Duration, now: Instant) {
        // If the disk has taken most of the time, the broker cannot be blamed.
        if waited >= self.deadline / 2 {
            self.state().breaker(partition).missed();
            self.remind(now);
        }
    }

    /// A waiter is gone.
    fn left(&self, seq: Seq) {
        let mut state = self.state();
        if let Some(asked) = state.asked.get_mut(&seq) {
            asked.waiting.retain(|waiting| !waiting.is_closed());
            state.forget(seq);
        }
    }
}

impl ConfirmState {
    /// The breaker of a partition, which may be one of an earlier session with more partitions.
    fn breaker(&mut self, partition: usize) -> &mut ConfirmBreaker {
        let last = self.breakers.len() - 1;
        &mut self.breakers[partition.min(last)]
    }

    fn is_any_open(&self, now: Instant) -> bool {
        self.breakers.iter().any(|breaker| breaker.is_open(now))
    }

    /// Forgets an unconfirmed event if nobody waits for it any more and it is no probe.
    fn forget(&mut self, seq: Seq) {
        let unused = self
            .asked
            .get(&seq)
            .filter(|asked| asked.waiting.is_empty());
        if let Some(partition) = unused.map(|asked| asked.partition)
            && !self.breaker(partition).is_probe(seq)
        {
            self.asked.remove(&seq);
        }
    }

    fn ask_for(&mut self, seq: Seq, partition: usize, now: Instant) -> &mut AskedFor {
        self.asked.entry(seq).or_insert_with(|| AskedFor {
            partition,
            since: now,
            waiting: Vec::new(),
        })
    }

    /// No confirm of this event will come: its answers stop waiting, and are given because it is on disk.
    fn end(&mut self, seq: Seq) {
        if let Some(asked) = self.asked.remove(&seq) {
            self.breaker(asked.partition).ended(seq, false);
            asked.answer(false);
        }
    }
}

impl AskedFor {
    fn answer(self, is_confirmed: bool) {
        for waiting in self.waiting {
            // The client may have disconnected.
            let _ = waiting.send(is_confirmed);
        }
    }
}

impl ConfirmWaiter<'_> {
    /// Whether the broker has confirmed the event by the deadline of a request whose head arrived at `began`.
    pub async fn wait(mut self, began: Instant) -> bool {
        let receiver = match &mut self.state {
            WaiterState::Confirmed => return true,
            WaiterState::NotWaiting => return false,
            WaiterState::Waiting(receiver) => receiver,
        };
        let by = began + self.confirms.deadline;
        if let Ok(confirmed) = timeout_at(by, receiver).await {
            self.state = WaiterState::NotWaiting;
            return confirmed.unwrap_or(false);
        }
        false
    }
}

impl Drop for ConfirmWaiter<'_> {
    /// The deadline is over, or the client has disconnected, which may be because it waited for too long.
    fn drop(&mut self) {
        if let WaiterState::Waiting(receiver) = &mut self.state {
            receiver.close();
            self.confirms.left(self.seq);
            let now = Instant::now();
            let waited = now.saturating_duration_since(self.since);
            self.confirms.missed(self.partition, waited, now);
        }
    }
}

#[cfg(test)]
mod tests;
