//! The forwarder against a fake broker.

mod chaos;
mod dead_letters;
mod fake_broker;
mod resend;

use std::time::Duration;

use tempfile::TempDir;

use self::fake_broker::{Broker, DeadLetterPolicy};
use super::*;
use crate::event::tests::event;
use crate::event::{Event, Kind, Seq};
use crate::setting::Period;
use crate::spool::{self, Status};

struct Rig {
    spool: Spool,
    broker: Broker,
    state: SinkState,
    stop: Stop,
    cursor: Cursor,
    resends: ResendQueue,
    task: tokio::task::JoinHandle<()>,
    folder: TempDir,
}

impl Rig {
    fn start(broker: Broker) -> Self {
        Self::start_with(broker, spool::Config::default().retention)
    }

    #[expect(clippy::disallowed_methods, reason = "the task is the test's")]
    fn start_with(broker: Broker, retention: Period) -> Self {
        let folder = TempDir::new().unwrap();
        let config = spool::Config {
            path: folder.path().join("spool.db"),
            reserve: crate::setting::Size(0),
            retention,
            ..spool::Config::default()
        };
        let spool = Spool::open(&config, &["fake"]).unwrap().spool;
        let handle = SinkHandle::new("fake", spool.cursor("fake").unwrap());
        let stop = Stop::default();
        let mut forwarder = Forwarder::new(broker.clone(), spool.clone(), &handle, stop.clone());
        if broker.set().silent.is_some() {
            forwarder.stalled_after = Duration::ZERO;
        }
        Self {
            spool,
            broker,
            state: handle.state,
            resends: handle.resends,
            stop,
            cursor: handle.cursor,
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
            .expect("timed out draining")
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
async fn publishes_every_event_once_and_in_order() {
    let rig = Rig::start(Broker::default());
    rig.append(1..=100).await;
    assert_eq!(rig.drain().await, (1..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn retries_until_the_broker_is_up() {
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
async fn resumes_from_the_cursor_after_a_lost_session() {
    let broker = Broker::default();
    broker.set().lose_after = Some(1);
    let rig = Rig::start(broker.clone());
    rig.append(1..=50).await;
    assert_eq!(rig.drain().await, (1..=50).collect::<Vec<_>>());
    let behaviour = broker.set();
    assert_eq!(
        (behaviour.lose_after, behaviour.sessions),
        (None, 2),
        "exactly one session must be lost"
    );
}

#[tokio::test]
async fn events_confirmed_ahead_are_not_republished() {
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
    rig.until("all but the first to be published", |rig| {
        rig.broker.set().published.len() == 9
    })
    .await;
    assert_eq!(rig.cursor.position(), Seq(0));
    broker.changed.notify_one();
    assert_eq!(rig.drain().await, [2, 3, 4, 5, 6, 7, 8, 9, 10, 1]);
}

#[tokio::test]
async fn a_stall_is_reported_and_keeps_the_sessions_reason() {
    for (silent, told) in [
        ("", "broker has confirmed nothing for 0 s"),
        ("events are unroutable", "events are unroutable"),
    ] {
        let broker = Broker::default();
        broker.set().silent = Some(silent);
        let rig = Rig::start(broker.clone());
        rig.until("a connection", |rig| rig.state.health() == Health::Up)
            .await;
        rig.append(1..=1).await;
        let reason = |rig: &Rig| match rig.state.health() {
            Health::Down { reason, .. } => reason,
            other => format!("{other:?}"),
        };
        rig.until("the reason", |rig| reason(rig) == told).await;
        // The check runs once a second: at least one more runs, and must not replace the reason.
        sleep(Duration::from_secs(2)).await;
        assert_eq!(reason(&rig), told);
        broker.set().silent = None;
        broker.changed.notify_one();
        assert_eq!(rig.drain().await, [1]);
    }
}

#[tokio::test]
async fn stops_at_the_deadline_and_keeps_unpublished_events() {
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
        .expect("timed out waiting for the end")
        .unwrap();
    assert_eq!(rig.spool.status().rows(), 3);
}

#[tokio::test]
async fn drains_an_empty_spool_while_the_broker_is_down() {
    let broker = Broker::default();
    broker.set().down = true;
    let rig = Rig::start(broker);
    rig.until("a try", |rig| rig.broker.set().sessions > 0)
        .await;
    assert_eq!(rig.drain().await, [0; 0]);
}

#[tokio::test]
async fn becomes_up_on_connect_or_on_first_confirm_with_backlog() {
    let broker = Broker::default();
    let rig = Rig::start(broker.clone());
    rig.until("the sink to be up", |rig| rig.state.health() == Health::Up)
        .await;
    rig.drain().await;

    let broker = Broker::default();
    broker.set().down = true;
    let rig = Rig::start(broker.clone());
    rig.append(1..=3).await;
    rig.until("the sink to be down", |rig| {
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
    rig.until("the sink to be up", |rig| rig.state.health() == Health::Up)
        .await;
    assert_eq!(rig.drain().await, [1, 2, 3]);
}

#[tokio::test]
async fn a_changed_connection_renews_the_session_after_its_events_are_confirmed() {
    let broker = Broker::default();
    broker.set().silent = Some("");
    let rig = Rig::start(broker);
    rig.append(1..=3).await;
    rig.until("the sink to be down", |rig| {
        rig.state.health() != Health::Starting
    })
    .await;
    rig.broker.connection_changed.notify_one();
    rig.append(4..=6).await;
    assert_eq!(rig.broker.set().sessions, 1);
    rig.broker.set().silent = None;
    rig.broker.changed.notify_one();
    rig.until("a new session", |rig| rig.broker.set().sessions == 2)
        .await;
    assert_eq!(rig.drain().await, [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn a_changed_connection_renews_a_session_that_confirms_nothing() {
    let broker = Broker::default();
    broker.set().silent = Some("");
    let rig = Rig::start(broker);
    rig.append(1..=3).await;
    rig.broker.connection_changed.notify_one();
    rig.until("a new session", |rig| rig.broker.set().sessions == 2)
        .await;
    rig.broker.set().silent = None;
    rig.broker.changed.notify_one();
    assert_eq!(rig.drain().await, [1, 2, 3]);
}
