//! The forwarder against a fake broker, which can be made to do what a real one cannot.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::Notify;

use super::*;
use crate::event::{Event, Kind, Seq, tests::event};
use crate::sink::{Delivery, Progress, Refusal, Session};
use crate::spool::{self, Status};

mod chaos;
mod dead_letters;

/// Which dead letters the broker accepts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum DeadLetterPolicy {
    #[default]
    All,
    /// All but those of poison events.
    Harmless,
    /// None: each of them ends the session.
    None,
}

/// The broker's behaviour and its state.
#[derive(Debug, Default)]
struct Behaviour {
    down: bool,
    /// Sessions end after this many confirms; all other events in flight are lost.
    lose_after: Option<usize>,
    /// Events that end the session if they are published.
    poison: HashSet<Seq>,
    accepts_dead_letters: DeadLetterPolicy,
    /// Confirms come in reverse order, except the first event's: it is confirmed only in the next session.
    confirm_all_but_first: bool,
    /// Sessions confirm nothing, and report a stall if the reason is not empty.
    silent: Option<&'static str>,
    sessions: usize,
    largest_batch: usize,
    /// How often the sink was told to make smaller batches.
    made_smaller: usize,
    published: Vec<Seq>,
    dead_letters: Vec<(Seq, Refusal)>,
}

#[derive(Debug, Clone, Default)]
struct Broker {
    behaviour: Arc<Mutex<Behaviour>>,
    changed: Arc<Notify>,
}

impl Broker {
    fn set(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap()
    }
}

struct FakeSession {
    broker: Broker,
    in_flight: Vec<Delivery>,
    confirmed: usize,
    told: bool,
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
            told: false,
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
            let tell = !reason.is_empty() && !std::mem::replace(&mut self.told, true);
            return tell.then(|| Ok(Progress::Stalled(reason.to_owned())));
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

struct Rig {
    spool: Spool,
    broker: Broker,
    state: SinkState,
    stop: Stop,
    cursor: Cursor,
    task: tokio::task::JoinHandle<()>,
    folder: TempDir,
}

impl Rig {
    #[expect(clippy::disallowed_methods, reason = "the task is the test's")]
    fn start(broker: Broker) -> Self {
        let folder = TempDir::new().unwrap();
        let config = spool::Config {
            path: folder.path().join("spool.db"),
            reserve: crate::setting::Size(0),
            ..spool::Config::default()
        };
        let spool = Spool::open(&config, &["fake"]).unwrap().spool;
        let (cursor, state, stop) = (
            spool.cursor("fake").unwrap(),
            SinkState::new("fake"),
            Stop::default(),
        );
        let mut forwarder = Forwarder::new(
            broker.clone(),
            spool.clone(),
            cursor.clone(),
            state.clone(),
            stop.clone(),
        );
        if broker.set().silent.is_some() {
            forwarder.stalled_after = Duration::ZERO;
        }
        Self {
            spool,
            broker,
            state,
            stop,
            cursor,
            task: tokio::spawn(forwarder.run()),
            folder,
        }
    }

    async fn append(&self, numbers: std::ops::RangeInclusive<u128>) {
        self.append_as(Kind::Group, numbers).await;
    }

    async fn append_as(&self, kind: Kind, numbers: std::ops::RangeInclusive<u128>) {
        for number in numbers {
            let event = event(number, format!("event {number}"));
            self.spool.append(Event { kind, ..event }).await.unwrap();
        }
    }

    /// The dead letters stored in the spool: number, reason and body.
    fn stored_dead_letters(&self) -> Vec<(u64, String, String)> {
        rusqlite::Connection::open(self.folder.path().join("spool.db"))
            .unwrap()
            .prepare("SELECT seq, reason, body FROM dead_letters")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap()
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !condition(self) {
            let now = tokio::time::Instant::now();
            assert!(
                now < deadline,
                "timed out waiting for {what}; {:?}",
                self.broker.set()
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn drain(self) -> Vec<u64> {
        self.stop.drain.cancel();
        timeout(Duration::from_secs(20), self.task)
            .await
            .expect("it drains")
            .unwrap();
        let Status { last, .. } = self.spool.status();
        assert_eq!(self.cursor.position(), last);
        self.spool.close().await;
        drop(self.folder);
        let behaviour = self.broker.set();
        behaviour.published.iter().map(|seq| seq.0).collect()
    }
}

#[tokio::test]
async fn everything_arrives_once_and_in_order() {
    let rig = Rig::start(Broker::default());
    rig.append(1..=100).await;
    assert_eq!(rig.drain().await, (1..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_broker_that_is_away_is_waited_for() {
    let broker = Broker::default();
    broker.set().down = true;
    let rig = Rig::start(broker.clone());
    rig.append(1..=3).await;
    rig.until("several tries", |rig| rig.broker.set().sessions >= 3)
        .await;
    assert!(matches!(rig.state.health(), Health::Down { reason, .. } if reason == "down"));
    broker.set().down = false;
    rig.until("all to arrive", |rig| rig.cursor.position() == Seq(3))
        .await;
    assert_eq!(rig.state.health(), Health::Up);
    assert_eq!(rig.drain().await, [1, 2, 3]);
}

#[tokio::test]
async fn a_lost_session_starts_again_from_the_cursor() {
    let broker = Broker::default();
    broker.set().lose_after = Some(1);
    let rig = Rig::start(broker.clone());
    rig.append(1..=50).await;
    assert_eq!(rig.drain().await, (1..=50).collect::<Vec<_>>());
    let behaviour = broker.set();
    assert_eq!(
        (behaviour.lose_after, behaviour.sessions),
        (None, 2),
        "a session was lost"
    );
}

#[tokio::test]
async fn what_was_confirmed_ahead_is_not_sent_twice() {
    let broker = Broker::default();
    broker.set().down = true;
    let rig = Rig::start(broker.clone());
    rig.append(1..=10).await;
    {
        let mut behaviour = broker.set();
        behaviour.down = false;
        behaviour.confirm_all_but_first = true;
        behaviour.lose_after = Some(9);
    }
    rig.until("all but the first", |rig| {
        rig.broker.set().published.len() == 9
    })
    .await;
    assert_eq!(rig.cursor.position(), Seq(0));
    broker.changed.notify_one();
    assert_eq!(rig.drain().await, [2, 3, 4, 5, 6, 7, 8, 9, 10, 1]);
}

#[tokio::test]
async fn silence_is_told_and_does_not_hide_what_the_session_says() {
    for (silent, told) in [
        ("", "nothing confirmed for 0 s"),
        ("no queue takes events", "no queue takes events"),
    ] {
        let broker = Broker::default();
        broker.set().silent = Some(silent);
        let rig = Rig::start(broker.clone());
        rig.until("connected", |rig| rig.state.health() == Health::Up)
            .await;
        rig.append(1..=1).await;
        let reason = |rig: &Rig| match rig.state.health() {
            Health::Down { reason, .. } => reason,
            other => format!("{other:?}"),
        };
        rig.until("told", |rig| reason(rig) == told).await;
        // The check runs once a second: at least one more runs, and must not replace the reason.
        sleep(Duration::from_secs(2)).await;
        assert_eq!(reason(&rig), told);
        broker.set().silent = None;
        broker.changed.notify_one();
        assert_eq!(rig.drain().await, [1]);
    }
}

#[tokio::test]
async fn at_the_deadline_it_ends_and_the_rest_stays() {
    let broker = Broker::default();
    broker.set().down = true;
    let rig = Rig::start(broker);
    rig.append(1..=3).await;
    rig.stop.drain.cancel();
    rig.until("a try", |rig| rig.broker.set().sessions > 0)
        .await;
    assert!(!rig.task.is_finished());
    rig.stop.now.cancel();
    timeout(Duration::from_secs(5), rig.task)
        .await
        .expect("it ends")
        .unwrap();
    assert_eq!(rig.spool.status().rows(), 3);
}

#[tokio::test]
async fn with_nothing_left_it_ends_although_the_broker_is_away() {
    let broker = Broker::default();
    broker.set().down = true;
    let rig = Rig::start(broker);
    rig.until("a try", |rig| rig.broker.set().sessions > 0)
        .await;
    assert_eq!(rig.drain().await, [0; 0]);
}

#[tokio::test]
async fn it_is_up_once_connected_or_where_events_wait_once_one_is_confirmed() {
    let broker = Broker::default();
    let rig = Rig::start(broker.clone());
    rig.until("up", |rig| rig.state.health() == Health::Up)
        .await;
    rig.drain().await;

    let broker = Broker::default();
    broker.set().down = true;
    let rig = Rig::start(broker.clone());
    rig.append(1..=3).await;
    rig.until("down", |rig| {
        matches!(rig.state.health(), Health::Down { .. })
    })
    .await;
    let tries = {
        let mut behaviour = broker.set();
        (behaviour.down, behaviour.silent) = (false, Some(""));
        behaviour.sessions
    };
    rig.until("a session", |rig| rig.broker.set().sessions > tries)
        .await;
    sleep(Duration::from_millis(50)).await;
    assert!(matches!(rig.state.health(), Health::Down { .. }));
    broker.set().silent = None;
    broker.changed.notify_one();
    rig.until("up", |rig| rig.state.health() == Health::Up)
        .await;
    assert_eq!(rig.drain().await, [1, 2, 3]);
}
