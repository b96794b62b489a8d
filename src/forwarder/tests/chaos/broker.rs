//! A fake broker that follows a script, and records what it did and which rules were broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use super::WINDOW;
use crate::event::Seq;
use crate::sink::{Delivery, Progress, Refusal, Session, SessionError, Sink, Window};
use crate::spool::Cursor;

/// What the broker does when its progress is polled.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    /// It accepts and confirms this many of the events in flight, the oldest or the newest first.
    Confirm(usize, ChaosEnd),
    /// It accepts this many of the events in flight without confirming them, then the session is lost.
    Lose(usize),
    /// It reports that it does not accept some event.
    Stall,
    /// It reports that it accepts events again.
    Flow,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum ChaosEnd {
    Oldest,
    Newest,
}

/// How the broker refuses an event, and whether it refuses its dead letter too.
#[derive(Debug, Clone, Copy)]
pub(super) struct Poison {
    pub(super) ends_session: bool,
    pub(super) dead_letter_refused: bool,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) script: Vec<Act>,
    pub(super) poison: BTreeMap<u64, Poison>,
    pub(super) sessions: u64,
    pub(super) lost: u64,
    /// Events that were confirmed, or whose dead letters were refused too: they must not be published again.
    pub(super) finished: BTreeSet<u64>,
    pub(super) published: BTreeSet<u64>,
    pub(super) dead_letters: BTreeSet<u64>,
    /// The broker has reported that it does not accept some event, even if it confirms others.
    pub(super) stalled: bool,
    /// The broker does nothing until this many events are in flight, then resets this to 0.
    pub(super) wait_for: usize,
    pub(super) violations: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Chaos {
    pub(super) model: Arc<Mutex<Model>>,
    pub(super) cursor: Arc<OnceLock<Cursor>>,
}

impl Chaos {
    pub(super) fn model(&self) -> MutexGuard<'_, Model> {
        let mut model = self.model.lock().unwrap();
        // At each access, check that the cursor has not passed an event whose outcome was not reported.
        let cursor = self.cursor.get().map_or(0, |cursor| cursor.position().0);
        if let Some(passed) = (1..=cursor).find(|seq| !model.finished.contains(seq)) {
            let violation = format!("the cursor is at {cursor}, but {passed} is not confirmed");
            model.violations.push(violation);
        }
        model
    }
}

pub(super) struct ChaosSession {
    broker: Chaos,
    in_flight: Vec<Delivery>,
    delivered: BTreeSet<u64>,
}

impl Sink for Chaos {
    type Session = ChaosSession;

    fn name(&self) -> &'static str {
        "chaos"
    }

    fn window(&self) -> usize {
        WINDOW
    }

    async fn connect(&mut self) -> Result<ChaosSession, SessionError> {
        let mut model = self.model();
        model.sessions += 1;
        model.stalled = false;
        Ok(ChaosSession {
            broker: self.clone(),
            in_flight: Vec::new(),
            delivered: BTreeSet::new(),
        })
    }
}

impl ChaosSession {
    fn refusal(seq: u64) -> Refusal {
        Refusal {
            reason: "too_large",
            detail: format!("event {seq}"),
        }
    }

    /// Accepts the delivery at `index`, as an event or as a dead letter.
    fn take(&mut self, model: &mut Model, index: usize) -> u64 {
        let delivery = self.in_flight.remove(index);
        let seq = delivery.seq.0;
        match delivery.refusal {
            None => model.published.insert(seq),
            Some(refusal) if refusal == Self::refusal(seq) => model.dead_letters.insert(seq),
            Some(refusal) => {
                model
                    .violations
                    .push(format!("{seq} was refused as {refusal}"));
                true
            }
        };
        seq
    }

    fn outcome(&mut self) -> Option<Result<Progress, SessionError>> {
        let broker = self.broker.clone();
        let mut model = broker.model();
        if self.in_flight.is_empty() || self.in_flight.len() < model.wait_for {
            return None;
        }
        model.wait_for = 0;
        let act = model
            .script
            .pop()
            .unwrap_or(Act::Confirm(3, ChaosEnd::Oldest));
        let refused = |model: &Model, delivery: &Delivery| {
            let poison = *model.poison.get(&delivery.seq.0)?;
            (delivery.refusal.is_none() || poison.dead_letter_refused).then_some(poison)
        };
        match act {
            Act::Confirm(count, end) => {
                let mut confirmed = Vec::new();
                while confirmed.len() < count {
                    let mut takeable = (0..self.in_flight.len())
                        .filter(|index| refused(&model, &self.in_flight[*index]).is_none());
                    let Some(index) = (match end {
                        ChaosEnd::Oldest => takeable.next(),
                        ChaosEnd::Newest => takeable.next_back(),
                    }) else {
                        break;
                    };
                    let seq = self.take(&mut model, index);
                    model.finished.insert(seq);
                    confirmed.push(Seq(seq));
                }
                if confirmed.is_empty() {
                    return Some(self.refuse(&mut model));
                }
                Some(Ok(Progress::Confirmed(confirmed)))
            }
            Act::Lose(taken) => {
                for _ in 0..taken.min(self.in_flight.len()) {
                    if refused(&model, &self.in_flight[0]).is_none() {
                        self.take(&mut model, 0);
                    }
                }
                model.lost += 1;
                Some(Err(SessionError::Unavailable("lost".to_owned(), None)))
            }
            Act::Stall => {
                model.stalled = true;
                Some(Ok(Progress::Stalled("stalled".to_owned())))
            }
            Act::Flow => {
                model.stalled = false;
                Some(Ok(Progress::Resumed))
            }
        }
    }

    /// Refuses the oldest event. Only poison events are in flight.
    fn refuse(&mut self, model: &mut Model) -> Result<Progress, SessionError> {
        let seq = self.in_flight[0].seq.0;
        let poison = model.poison[&seq];
        let alone = self.in_flight.len() == 1;
        if poison.dead_letter_refused
            && self.in_flight[0].refusal.is_some()
            && (alone || !poison.ends_session)
        {
            model.finished.insert(seq);
        }
        if poison.ends_session {
            return Err(SessionError::Refused(Self::refusal(seq)));
        }
        self.in_flight.remove(0);
        Ok(Progress::Refused(vec![(Seq(seq), Self::refusal(seq))]))
    }
}

impl Session for ChaosSession {
    fn publish(&mut self, window: &Window, seqs: &[Seq]) {
        let deliveries = seqs.iter().filter_map(|seq| window.delivery(*seq)).cloned();
        let broker = self.broker.clone();
        let mut model = broker.model();
        for delivery in deliveries {
            let seq = delivery.seq.0;
            let is_repeated = !self.delivered.insert(seq) && delivery.refusal.is_none();
            if is_repeated || model.finished.contains(&seq) {
                model.violations.push(format!("{seq} was published again"));
            }
            let newest = self.in_flight.last().map_or(0, |last| last.seq.0);
            if delivery.refusal.is_none() && seq < newest {
                model
                    .violations
                    .push(format!("{seq} was published after {newest}"));
            }
            self.in_flight.push(delivery);
        }
        if self.in_flight.len() > WINDOW {
            model
                .violations
                .push(format!("{} in flight", self.in_flight.len()));
        }
    }

    async fn progress(&mut self, _: &Window) -> Result<Progress, SessionError> {
        match self.outcome() {
            Some(outcome) => outcome,
            // The forwarder polls again when it has published more.
            None => std::future::pending().await,
        }
    }

    async fn close(self) {}
}
