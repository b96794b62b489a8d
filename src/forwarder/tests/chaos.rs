//! The forwarder against a broker that follows a random script. Every step is checked against a simple model of what
//! the broker accepted and what it reported.

mod broker;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;
use broker::{Act, Chaos, ChaosEnd, Model, Poison};

/// Events in each script; the window is much smaller.
const EVENTS: u64 = 50;
const WINDOW: usize = 16;

/// Longer than any script takes.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

fn scripts() -> impl Strategy<Value = Vec<Act>> {
    let end = prop_oneof![Just(ChaosEnd::Oldest), Just(ChaosEnd::Newest)];
    let act = prop_oneof![
        14 => (1..WINDOW, end).prop_map(|(count, end)| Act::Confirm(count, end)),
        2 => (0..WINDOW).prop_map(Act::Lose),
        1 => Just(Act::Stall),
        1 => Just(Act::Flow),
    ];
    prop::collection::vec(act, 0..20)
}

fn poisons() -> impl Strategy<Value = BTreeMap<u64, Poison>> {
    let poison = any::<(bool, bool)>().prop_map(|(ends_session, dead_letter_refused)| Poison {
        ends_session,
        dead_letter_refused,
    });
    prop::collection::btree_map(1..=EVENTS, poison, 0..4)
}

/// Appends events and waits until the cursor has passed them. Each event is waited for, as an answer does.
async fn forward(
    spool: &Spool,
    broker: &Chaos,
    confirms: &Arc<Confirms>,
    numbers: std::ops::RangeInclusive<u64>,
) {
    let last = Seq(*numbers.end());
    let mut waiting = tokio::task::JoinSet::new();
    for number in numbers {
        let event = event(number.into(), format!("event {number}"));
        spool.append(event).await.unwrap();
        let (confirms, now) = (Arc::clone(confirms), tokio::time::Instant::now());
        waiting.spawn(async move {
            let waiter = confirms.waiter(Seq(number), 0, false, now);
            (Seq(number), waiter.wait(now).await)
        });
    }
    let cursor = spool.cursor("chaos").unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while cursor.position() < last {
        let model = format!("{:?}", broker.model());
        let now = tokio::time::Instant::now();
        assert!(now < deadline, "the cursor stays at {cursor:?}; {model}");
        sleep(Duration::from_millis(2)).await;
    }
    // Long before their deadline, all waits have ended, and none with a confirm that the broker has not given.
    let ended = timeout(ANSWER_DEADLINE / 2, waiting.join_all()).await;
    for (seq, is_confirmed) in ended.expect("a wait has not ended") {
        let model = broker.model();
        let has = model.published.contains(&seq.0) || model.dead_letters.contains(&seq.0);
        assert!(has || !is_confirmed, "{seq} was not confirmed; {model:?}");
    }
}

/// Runs a forwarder against a broker that follows the model's script.
#[expect(clippy::disallowed_methods, reason = "the task is the test's")]
async fn run_script(model: Model) {
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
    let (mut handle, stop) = (SinkHandle::new("chaos", cursor), Stop::default());
    let confirms = Arc::new(Confirms::new("chaos", Seq(0), ANSWER_DEADLINE));
    handle.confirms = Some(Arc::clone(&confirms));
    let forwarder = Forwarder::new(broker.clone(), spool.clone(), &handle, stop.clone());
    let state = handle.state;
    let task = tokio::spawn(forwarder.run());
    forward(&spool, &broker, &confirms, 1..=EVENTS).await;

    // The window must have its full size again, whatever was refused before.
    broker.model().wait_for = WINDOW;
    let more = EVENTS + 1..=EVENTS + WINDOW as u64;
    forward(&spool, &broker, &confirms, more).await;
    assert!(confirms.is_idle(), "{confirms:?}");
    stop.drain.cancel();
    timeout(Duration::from_secs(20), task)
        .await
        .expect("timed out draining")
        .unwrap();
    spool.close().await;

    let model = broker.model();
    let is_down = matches!(state.health(), Health::Down { .. });
    assert_eq!(is_down, model.stalled, "{:?}", state.health());
    assert_eq!(model.violations, [""; 0], "{model:?}");
    let all: Vec<u64> = (1..=EVENTS + WINDOW as u64).collect();
    let healthy: Vec<u64> = all
        .iter()
        .copied()
        .filter(|seq| !poison.contains_key(seq))
        .collect();
    assert_eq!(Vec::from_iter(model.published.clone()), healthy);
    let taken = poison
        .iter()
        .filter(|(_, poison)| !poison.dead_letter_refused);
    let taken: Vec<u64> = taken.map(|(seq, _)| *seq).collect();
    assert_eq!(Vec::from_iter(model.dead_letters.clone()), taken);

    let refused = poison
        .iter()
        .filter(|(_, poison)| poison.dead_letter_refused);
    let refused: Vec<u64> = refused.map(|(seq, _)| *seq).collect();
    let kept: Vec<u64> = rusqlite::Connection::open(&config.path)
        .unwrap()
        .prepare("SELECT seq FROM dead_letters ORDER BY seq")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(kept, refused);

    // The window is halved from 16 to 8, 4, 2 and 1. Then the dead letter is sent, and may be refused too.
    let ended = 6 * poison.values().filter(|poison| poison.ends_session).count() as u64;
    assert!(model.sessions <= 1 + model.lost + ended, "{model:?}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 16,
        max_shrink_iters: 8,
        ..ProptestConfig::default()
    })]

    /// Whatever the broker does: the cursor never passes an unconfirmed event. Exactly the refused events become dead
    /// letters, and those that are refused again are stored in the spool's table. All others are published in order,
    /// none twice in one session or after its confirm. In the end the whole window is used again.
    #[test]
    fn no_event_is_lost_under_any_broker_script(script in scripts(), poison in poisons()) {
        let model = Model { script, poison, ..Model::default() };
        Runtime::new().unwrap().block_on(run_script(model));
    }
}
