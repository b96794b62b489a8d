//! Replays, and retries of dead letters.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::*;
use crate::forwarder::{Resend, ResendEnd, ResendError, ResendProgress, ResendSource};

const REPLAY_FROM_4: ResendSource = ResendSource::Replay { from: Seq(4) };

impl Rig {
    /// A sink that has confirmed the events 1 to `last`; they are no longer among `published`.
    async fn after(last: u64) -> Self {
        Self::after_with(last, spool::Config::default().retention).await
    }

    async fn after_with(last: u64, retention: Period) -> Self {
        let rig = Self::start_with(Broker::default(), retention);
        rig.append(1..=last.into()).await;
        rig.until("the first confirms", |rig| {
            rig.cursor.position() == Seq(last)
        })
        .await;
        rig.broker.set().published.clear();
        rig
    }

    /// The outcome of a resend.
    async fn finish(&self, mut resend: Resend) -> ResendProgress {
        let ended = resend.progress.wait_for(|progress| progress.end.is_some());
        let ended = timeout(Duration::from_secs(20), ended).await;
        ended.expect("timed out").unwrap().clone()
    }

    fn published(&self) -> Vec<u64> {
        let broker = self.broker.set();
        broker.published.iter().map(|seq| seq.0).collect()
    }

    fn silence(&self, silent: Option<&'static str>) {
        self.broker.set().silent = silent;
        self.broker.changed.notify_one();
    }
}

fn numbers(numbers: RangeInclusive<u64>) -> Vec<u64> {
    numbers.collect()
}

#[tokio::test]
async fn a_replay_sends_confirmed_events_again_in_order_and_new_ones_follow() {
    let rig = Rig::after(100).await;
    rig.silence(Some(""));
    let resend = rig.resends.request(REPLAY_FROM_4).unwrap();
    rig.until("the beginning", |rig| {
        rig.resends
            .running()
            .is_some_and(|progress| progress.has_begun)
    })
    .await;
    rig.append(101..=150).await;
    assert_eq!(rig.cursor.position(), Seq(100), "it does not move back");
    rig.silence(None);
    let progress = rig.finish(resend).await;
    assert_eq!(
        progress,
        ResendProgress {
            has_begun: true,
            total: 97,
            confirmed: 97,
            skipped: 0,
            refused: 0,
            position: Seq(100),
            end: Some(ResendEnd::Finished),
        }
    );
    assert_eq!(rig.resends.running(), None);
    assert_eq!(rig.drain().await, numbers(4..=150));
}

#[tokio::test]
async fn a_replay_begins_after_the_events_in_flight() {
    let rig = Rig::after(3).await;
    rig.silence(Some(""));
    rig.append(4..=9).await;
    rig.until("events in flight", |rig| rig.spool.status().last == Seq(9))
        .await;
    let resend = rig
        .resends
        .request(ResendSource::Replay { from: Seq(2) })
        .unwrap();
    rig.silence(None);
    let progress = rig.finish(resend).await;
    // How many events were in flight when it was requested is not determined.
    assert_eq!(progress.confirmed + 1, progress.position.0, "{progress:?}");
    let published = rig.drain().await;
    let until = progress.position.0;
    let expected: Vec<u64> = (4..=until).chain(2..=until).chain(until + 1..=9).collect();
    assert_eq!(published, expected);
}

#[tokio::test]
async fn a_replay_continues_in_the_next_session() {
    let rig = Rig::after(200).await;
    let sessions = rig.broker.set().sessions;
    rig.broker.set().lose_after = Some(250);
    let resend = rig.resends.request(REPLAY_FROM_4).unwrap();
    let progress = rig.finish(resend).await;
    assert_eq!((progress.confirmed, progress.skipped), (197, 0));
    assert_eq!(rig.broker.set().sessions, sessions + 1);
    assert_eq!(rig.drain().await, numbers(4..=200));
}

#[tokio::test]
async fn events_that_are_purged_before_they_are_sent_again_are_reported() {
    let rig = Rig::after_with(20, Period(Duration::ZERO)).await;
    rig.until("the purge", |rig| rig.spool.status().rows() == 0)
        .await;
    let resend = rig.resends.request(REPLAY_FROM_4).unwrap();
    let progress = rig.finish(resend).await;
    assert_eq!(
        (progress.total, progress.confirmed, progress.skipped),
        (17, 0, 17)
    );
    assert_eq!(rig.spool.status().refusing, None, "a purge is no damage");
    rig.append(21..=22).await;
    assert_eq!(rig.drain().await, [21, 22]);
}

#[tokio::test]
async fn a_replay_of_what_is_still_waiting_sends_nothing_twice() {
    let rig = Rig::after(3).await;
    let resend = rig.resends.request(REPLAY_FROM_4).unwrap();
    let progress = rig.finish(resend).await;
    assert_eq!((progress.total, progress.confirmed), (0, 0));
    rig.append(4..=5).await;
    assert_eq!(rig.drain().await, [4, 5]);
}

#[tokio::test]
async fn a_replay_ends_when_nobody_waits_for_it() {
    let rig = Rig::after(1000).await;
    rig.silence(Some(""));
    let resend = rig.resends.request(REPLAY_FROM_4).unwrap();
    assert_eq!(
        rig.resends.request(REPLAY_FROM_4).unwrap_err(),
        ResendError::Busy
    );
    rig.until("the beginning", |rig| {
        rig.resends
            .running()
            .is_some_and(|progress| progress.has_begun)
    })
    .await;
    drop(resend);
    rig.append(1001..=1002).await;
    rig.silence(None);
    rig.until("new events", |rig| rig.cursor.position() == Seq(1002))
        .await;
    let published = rig.published();
    assert!(published.len() < 100, "{published:?}");
    assert!(published.is_sorted() && published.ends_with(&[1001, 1002]));
    // Another one can be requested now.
    let resend = rig
        .resends
        .request(ResendSource::Replay { from: Seq(1000) });
    rig.finish(resend.unwrap()).await;
}

#[tokio::test]
async fn a_stop_ends_a_replay_and_publishes_new_events() {
    let rig = Rig::after(1000).await;
    rig.silence(Some(""));
    let resend = rig.resends.request(REPLAY_FROM_4).unwrap();
    rig.until("the beginning", |rig| {
        rig.resends
            .running()
            .is_some_and(|progress| progress.has_begun)
    })
    .await;
    rig.append(1001..=1002).await;
    rig.stop.drain.cancel();
    let progress = rig.finish(resend).await;
    assert!(
        matches!(progress.end, Some(ResendEnd::Stopped(_))),
        "{progress:?}"
    );
    rig.silence(None);
    let published = rig.drain().await;
    assert!(published.ends_with(&[1001, 1002]), "{published:?}");
    assert!(published.len() < 100, "{published:?}");
}

#[tokio::test]
async fn a_request_to_a_sink_that_has_ended_fails() {
    let rig = Rig::after(3).await;
    let resends = rig.resends.clone();
    rig.drain().await;
    let refused = resends.request(REPLAY_FROM_4).unwrap_err();
    assert_eq!(refused, ResendError::Stopped);
}

#[tokio::test]
async fn a_replayed_event_that_is_refused_becomes_a_dead_letter_again() {
    let rig = Rig::after(20).await;
    rig.broker.set().poison = [Seq(7)].into();
    let resend = rig.resends.request(REPLAY_FROM_4).unwrap();
    let progress = rig.finish(resend).await;
    assert_eq!((progress.confirmed, progress.refused), (17, 0));
    assert_eq!(rig.broker.set().dead_letters.len(), 1);
    let healthy: Vec<u64> = (4..=20).filter(|seq| *seq != 7).collect();
    assert_eq!(rig.drain().await, healthy);
}

/// A sink whose events 5 and 7 are dead letters in the spool.
async fn with_dead_letters() -> Rig {
    let broker = Broker::default();
    broker.set().poison = [Seq(5), Seq(7)].into();
    broker.set().accepts_dead_letters = DeadLetterPolicy::None;
    let rig = Rig::start(broker);
    rig.append(1..=20).await;
    rig.until("all to be handled", |rig| rig.cursor.position() == Seq(20))
        .await;
    assert_eq!(rig.spool.dead_letters(), 2);
    rig.broker.set().published.clear();
    rig
}

fn retry(seqs: &[u64]) -> ResendSource {
    let seqs: BTreeSet<Seq> = seqs.iter().copied().map(Seq).collect();
    ResendSource::Retry { seqs }
}

#[tokio::test]
async fn a_retry_publishes_dead_letters_and_removes_them() {
    let rig = with_dead_letters().await;
    rig.broker.set().poison.clear();
    // The third one is not there, and the last one is not confirmed yet.
    let resend = rig.resends.request(retry(&[5, 6, 7, 21])).unwrap();
    let progress = rig.finish(resend).await;
    let counts = (progress.total, progress.confirmed, progress.skipped);
    assert_eq!(counts, (4, 2, 2), "{progress:?}");
    rig.until("an empty table", |rig| rig.spool.dead_letters() == 0)
        .await;
    assert_eq!(rig.stored_dead_letters(), []);
    rig.append(21..=22).await;
    assert_eq!(rig.drain().await, [5, 7, 21, 22]);
}

#[tokio::test]
async fn a_retry_that_is_refused_keeps_the_dead_letter() {
    let rig = with_dead_letters().await;
    rig.broker.set().poison = [Seq(7)].into();
    let resend = rig.resends.request(retry(&[5, 7])).unwrap();
    let progress = rig.finish(resend).await;
    let counts = (progress.confirmed, progress.refused, progress.skipped);
    assert_eq!(counts, (1, 1, 0), "{progress:?}");
    let stored = rig.stored_dead_letters();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].0, 7);
    assert_eq!(rig.published(), [5]);
    rig.broker.set().accepts_dead_letters = DeadLetterPolicy::All;
    let resend = rig.resends.request(retry(&[7])).unwrap();
    let progress = rig.finish(resend).await;
    assert_eq!((progress.confirmed, progress.refused), (1, 0));
    assert_eq!(rig.stored_dead_letters(), []);
    assert_eq!(rig.broker.set().dead_letters.len(), 1);
}

#[tokio::test]
async fn a_retry_survives_a_lost_session() {
    let rig = with_dead_letters().await;
    rig.broker.set().poison.clear();
    rig.broker.set().lose_after = Some(0);
    let resend = rig.resends.request(retry(&[5, 7])).unwrap();
    let progress = rig.finish(resend).await;
    assert_eq!((progress.confirmed, progress.skipped), (2, 0));
    assert_eq!(rig.published(), [5, 7]);
    assert_eq!(rig.stored_dead_letters(), []);
}
