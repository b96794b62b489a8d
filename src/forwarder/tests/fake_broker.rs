//! A fake broker whose behaviour the test controls.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::event::Seq;
use crate::sink::{Delivery, Progress, Refusal, Session, SessionError, Sink, Window};

/// Which dead letters the broker accepts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum DeadLetterPolicy {
    #[default]
    All,
    /// All but those of poison events.
    Harmless,
    /// None: each of them ends the session.
    None,
}

/// The broker's behaviour and its state.
#[derive(Debug, Default)]
pub(super) struct Behaviour {
    pub(super) down: bool,
    /// The next session that has confirmed this many events ends; its other events in flight are lost.
    pub(super) lose_after: Option<usize>,
    /// Events that end the session if they are published.
    pub(super) poison: HashSet<Seq>,
    pub(super) accepts_dead_letters: DeadLetterPolicy,
    /// The next confirm omits the oldest event in flight.
    pub(super) confirm_all_but_first: bool,
    /// Sessions confirm nothing; they report a stall with this reason if it is not empty.
    pub(super) silent: Option<&'static str>,
    pub(super) sessions: usize,
    pub(super) largest_batch: usize,
    /// How often `make_smaller_batches` was called.
    pub(super) made_smaller: usize,
    pub(super) published: Vec<Seq>,
    pub(super) dead_letters: Vec<(Seq, Refusal)>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Broker {
    behaviour: Arc<Mutex<Behaviour>>,
    pub(super) changed: Arc<Notify>,
    pub(super) connection_changed: Arc<Notify>,
}

impl Broker {
    pub(super) fn set(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap()
    }
}

pub(super) struct FakeSession {
    broker: Broker,
    in_flight: Vec<Delivery>,
    confirmed: usize,
    stall_reported: bool,
}

impl Sink for Broker {
    type Session = FakeSession;

    fn name(&self) -> &'static str {
        "fake"
    }

    fn window(&self) -> usize {
        16
    }

    fn make_smaller_batches(&mut self) {
        self.set().made_smaller += 1;
    }

    async fn connection_changed(&mut self) {
        self.connection_changed.notified().await;
    }

    async fn connect(&mut self) -> Result<FakeSession, SessionError> {
        let mut behaviour = self.set();
        behaviour.sessions += 1;
        if behaviour.down {
            return Err(SessionError::Unavailable("down".to_owned(), None));
        }
        Ok(FakeSession {
            broker: self.clone(),
            in_flight: Vec::new(),
            confirmed: 0,
            stall_reported: false,
        })
    }
}

impl FakeSession {
    fn outcome(&mut self) -> Option<Result<Progress, SessionError>> {
        let mut behaviour = self.broker.set();
        if self.in_flight.is_empty() {
            return None;
        }
        if let Some(reason) = behaviour.silent {
            let report = !reason.is_empty() && !std::mem::replace(&mut self.stall_reported, true);
            return report.then(|| Ok(Progress::Stalled(reason.to_owned())));
        }
        behaviour.largest_batch = behaviour.largest_batch.max(self.in_flight.len());
        let is_poison = |delivery: &Delivery| {
            behaviour.poison.contains(&delivery.seq)
                && (delivery.refusal.is_none()
                    || behaviour.accepts_dead_letters == DeadLetterPolicy::Harmless)
        };
        if self.in_flight.iter().any(is_poison) {
            return Some(Err(SessionError::Refused(Refusal {
                reason: "too_large",
                detail: "by a byte".to_owned(),
            })));
        }
        if behaviour.accepts_dead_letters == DeadLetterPolicy::None
            && self.in_flight.iter().any(Delivery::is_dead_letter)
        {
            return Some(Err(SessionError::Refused(Refusal {
                reason: "dead_letter_topic",
                detail: "closed".to_owned(),
            })));
        }
        if behaviour
            .lose_after
            .is_some_and(|after| self.confirmed >= after)
        {
            behaviour.lose_after = None;
            return Some(Err(SessionError::Unavailable("lost".to_owned(), None)));
        }
        let keep_back = usize::from(std::mem::take(&mut behaviour.confirm_all_but_first));
        let confirmed: Vec<Seq> = self
            .in_flight
            .drain(keep_back..)
            .map(|delivery| {
                let seq = delivery.seq;
                match delivery.refusal {
                    Some(refusal) => behaviour.dead_letters.push((seq, refusal)),
                    None => behaviour.published.push(seq),
                }
                seq
            })
            .collect();
        self.confirmed += confirmed.len();
        if confirmed.is_empty() {
            return None;
        }
        Some(Ok(Progress::Confirmed(
            confirmed.into_iter().rev().collect(),
        )))
    }
}

impl Session for FakeSession {
    fn publish(&mut self, window: &Window, seqs: &[Seq]) {
        let deliveries = seqs.iter().filter_map(|seq| window.delivery(*seq));
        self.in_flight.extend(deliveries.cloned());
    }

    async fn progress(&mut self, _: &Window) -> Result<Progress, SessionError> {
        loop {
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            let changed = Arc::clone(&self.broker.changed);
            changed.notified().await;
        }
    }

    async fn close(self) {}
}
