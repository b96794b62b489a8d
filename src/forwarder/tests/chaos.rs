//! The forwarder against a broker that follows a random script, checked against a plain model at every
//! step: which events the broker took, and which it said that it took.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;

/// Events of each history; the window is much smaller.
const EVENTS: u64 = 50;
const WINDOW: usize = 16;

/// What the broker does when it is asked what has happened.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// It takes and confirms so many of those in flight, the newest first or the oldest.
    Confirm(usize, End),
    /// The session is lost; the broker took so many of those in flight without saying so.
    Lose(usize),
    Stall,
    Flow,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Oldest,
    Newest,
}

/// How the broker refuses an event, and whether its dead letters do too.
#[derive(Debug, Clone, Copy)]
struct Poison {
    ends_session: bool,
    nowhere: bool,
}

#[derive(Debug, Default)]
struct Model {
    script: Vec<Act>,
    poison: BTreeMap<u64, Poison>,
    sessions: u64,
    lost: u64,
    /// What was confirmed, or refused by the dead letters too: the forwarder is done with it.
    done: BTreeSet<u64>,
    published: BTreeSet<u64>,
    dead_letters: BTreeSet<u64>,
    /// It said that something does not get through, whatever becomes of the others.
    stalled: bool,
    /// Nothing is confirmed until so many are in flight, once.
    wait_for: usize,
    wrong: Vec<String>,
}

#[derive(Debug, Clone, Default)]
struct Chaos {
    model: Arc<Mutex<Model>>,
    cursor: Arc<OnceLock<Cursor>>,
}

impl Chaos {
    fn model(&self) -> MutexGuard<'_, Model> {
        let mut model = self.model.lock().unwrap();
        // Whenever anybody looks: the cursor is not beyond what the forwarder was told.
        let cursor = self.cursor.get().map_or(0, |cursor| cursor.position().0);
        if let Some(passed) = (1..=cursor).find(|seq| !model.done.contains(seq)) {
            let wrong = format!("the cursor is at {cursor}, but {passed} is not confirmed");
            model.wrong.push(wrong);
        }
        model
    }
}

struct ChaosSession {
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

    /// Takes what is at `index`, for the topic or the dead letters.
    fn take(&mut self, model: &mut Model, index: usize) -> u64 {
        let delivery = self.in_flight.remove(index);
        let seq = delivery.stored.seq.0;
        match delivery.refusal {
            None => model.published.insert(seq),
            Some(refusal) if refusal == Self::refusal(seq) => model.dead_letters.insert(seq),
            Some(refusal) => {
                model.wrong.push(format!("{seq} was refused as {refusal}"));
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
        let act = model.script.pop().unwrap_or(Act::Confirm(3, End::Oldest));
        let refused = |model: &Model, delivery: &Delivery| {
            let poison = *model.poison.get(&delivery.stored.seq.0)?;
            (delivery.refusal.is_none() || poison.nowhere).then_some(poison)
        };
        match act {
            Act::Confirm(count, end) => {
                let mut confirmed = Vec::new();
                while confirmed.len() < count {
                    let mut takeable = (0..self.in_flight.len())
                        .filter(|index| refused(&model, &self.in_flight[*index]).is_none());
                    let Some(index) = (match end {
                        End::Oldest => takeable.next(),
                        End::Newest => takeable.next_back(),
                    }) else {
                        break;
                    };
                    let seq = self.take(&mut model, index);
                    model.done.insert(seq);
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
                Some(Ok(Progress::Flowing))
            }
        }
    }

    /// Refuses one: all that is in flight is poison.
    fn refuse(&mut self, model: &mut Model) -> Result<Progress, SessionError> {
        let seq = self.in_flight[0].stored.seq.0;
        let poison = model.poison[&seq];
        let alone = self.in_flight.len() == 1;
        if poison.nowhere && self.in_flight[0].refusal.is_some() && (alone || !poison.ends_session)
        {
            model.done.insert(seq);
        }
        if poison.ends_session {
            return Err(SessionError::Refused(Self::refusal(seq)));
        }
        self.in_flight.remove(0);
        Ok(Progress::Refused(Seq(seq), Self::refusal(seq)))
    }
}

impl Session for ChaosSession {
    fn publish(&mut self, deliveries: Vec<Delivery>) {
        let broker = self.broker.clone();
        let mut model = broker.model();
        for delivery in deliveries {
            let seq = delivery.stored.seq.0;
            let again = !self.delivered.insert(seq) && delivery.refusal.is_none();
            if again || model.done.contains(&seq) {
                model.wrong.push(format!("{seq} came again"));
            }
            let ahead = self.in_flight.last().map_or(0, |last| last.stored.seq.0);
            if delivery.refusal.is_none() && seq < ahead {
                model.wrong.push(format!("{seq} came after {ahead}"));
            }
            self.in_flight.push(delivery);
        }
        if self.in_flight.len() > WINDOW {
            model
                .wrong
                .push(format!("{} in flight", self.in_flight.len()));
        }
    }

    async fn progress(&mut self) -> Result<Progress, SessionError> {
        match self.outcome() {
            Some(outcome) => outcome,
            // It is asked again when more is handed over.
            None => std::future::pending().await,
        }
    }

    async fn close(self) {}
}

fn scripts() -> impl Strategy<Value = Vec<Act>> {
    let end = prop_oneof![Just(End::Oldest), Just(End::Newest)];
    let act = prop_oneof![
        14 => (1..WINDOW, end).prop_map(|(count, end)| Act::Confirm(count, end)),
        2 => (0..WINDOW).prop_map(Act::Lose),
        1 => Just(Act::Stall),
        1 => Just(Act::Flow),
    ];
    prop::collection::vec(act, 0..20)
}

fn poisons() -> impl Strategy<Value = BTreeMap<u64, Poison>> {
    let poison = any::<(bool, bool)>().prop_map(|(ends_session, nowhere)| Poison {
        ends_session,
        nowhere,
    });
    prop::collection::btree_map(1..=EVENTS, poison, 0..4)
}

/// Appends events and waits until the cursor has passed them.
async fn forward(spool: &Spool, broker: &Chaos, numbers: std::ops::RangeInclusive<u64>) {
    let last = Seq(*numbers.end());
    for number in numbers {
        let event = Event {
            kind: Kind::Recalled,
            id: Uuid::from_u128(number.into()),
            bytes: Bytes::from(format!("event {number}")),
        };
        spool.append(event).await.unwrap();
    }
    let cursor = spool.cursor("chaos").unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while cursor.position() < last {
        let model = format!("{:?}", broker.model());
        let now = tokio::time::Instant::now();
        assert!(now < deadline, "the cursor stays at {cursor:?}; {model}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Lets a forwarder forward through a broker that does as the model says.
#[expect(clippy::disallowed_methods, reason = "the task is the test's")]
async fn history(model: Model) {
    let poison = model.poison.clone();
    let folder = TempDir::new().unwrap();
    let config = spool::Config {
        path: folder.path().join("spool.db"),
        reserve: crate::setting::Size(0),
        ..spool::Config::default()
    };
    let spool = Spool::open(&config, &["chaos"]).unwrap().spool;
    let cursor = spool.cursor("chaos").unwrap();
    let broker = Chaos {
        model: Arc::new(Mutex::new(model)),
        ..Chaos::default()
    };
    broker.cursor.set(cursor.clone()).unwrap();
    let (state, stop) = (State::new("chaos"), Stop::default());
    let forwarder = Forwarder::new(
        broker.clone(),
        spool.clone(),
        cursor,
        state.clone(),
        stop.clone(),
    );
    let task = tokio::spawn(forwarder.run());
    forward(&spool, &broker, 1..=EVENTS).await;

    // Whatever was refused: afterwards the whole window is used again.
    broker.model().wait_for = WINDOW;
    forward(&spool, &broker, EVENTS + 1..=EVENTS + WINDOW as u64).await;
    stop.drain.cancel();
    timeout(Duration::from_secs(20), task)
        .await
        .expect("it drains")
        .unwrap();
    spool.close().await;

    let model = broker.model();
    let is_down = matches!(state.health(), Health::Down { .. });
    assert_eq!(is_down, model.stalled, "{:?}", state.health());
    assert_eq!(model.wrong, [""; 0], "{model:?}");
    let all: Vec<u64> = (1..=EVENTS + WINDOW as u64).collect();
    let healthy: Vec<u64> = all
        .iter()
        .copied()
        .filter(|seq| !poison.contains_key(seq))
        .collect();
    assert_eq!(Vec::from_iter(model.published.clone()), healthy);
    let taken = poison.iter().filter(|(_, poison)| !poison.nowhere);
    let taken: Vec<u64> = taken.map(|(seq, _)| *seq).collect();
    assert_eq!(Vec::from_iter(model.dead_letters.clone()), taken);

    let nowhere = poison.iter().filter(|(_, poison)| poison.nowhere);
    let nowhere: Vec<u64> = nowhere.map(|(seq, _)| *seq).collect();
    let kept: Vec<u64> = rusqlite::Connection::open(&config.path)
        .unwrap()
        .prepare("SELECT seq FROM dead_letters ORDER BY seq")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(kept, nowhere);

    // Sixteen halve to eight, four, two, one; then the event goes to the dead letters, which may refuse.
    let ended = 6 * poison.values().filter(|poison| poison.ends_session).count() as u64;
    assert!(model.sessions <= 1 + model.lost + ended, "{model:?}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 16,
        max_shrink_iters: 8,
        ..ProptestConfig::default()
    })]

    /// Whatever the broker does: the cursor never passes what is not confirmed; exactly what is refused
    /// goes to the dead letters, or stays in the spool's table where those refuse it too; everything else
    /// is published, nothing twice in one session nor after its confirm, in order; and in the end the
    /// window is whole again.
    #[test]
    fn nothing_is_lost_in_any_history(script in scripts(), poison in poisons()) {
        let model = Model { script, poison, ..Model::default() };
        Runtime::new().unwrap().block_on(history(model));
    }
}
