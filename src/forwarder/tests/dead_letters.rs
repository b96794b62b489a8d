//! Events that the broker refuses, and dead letters that it refuses too.

use super::*;

#[tokio::test]
async fn a_poison_event_becomes_a_dead_letter_others_are_published() {
    let broker = Broker::default();
    broker.set().down = true;
    broker.set().poison = [Seq(7), Seq(23)].into();
    let rig = Rig::start(broker.clone());
    rig.append(1..=40).await;
    broker.set().down = false;
    rig.until("the end", |rig| rig.cursor.position() == Seq(40))
        .await;
    assert_eq!(rig.state.metrics().refused, 2);
    let mut published = rig.drain().await;
    let behaviour = broker.set();
    let dead: Vec<u64> = behaviour
        .dead_letters
        .iter()
        .map(|(seq, _)| seq.0)
        .collect();
    assert_eq!(dead, [7, 23]);
    assert_eq!(behaviour.dead_letters[0].1.reason, "too_large");
    assert!(behaviour.largest_batch > 1, "the window stayed at 1");
    published.sort_unstable();
    let expected: Vec<u64> = (1..=40).filter(|seq| ![7, 23].contains(seq)).collect();
    assert_eq!(published, expected);
}

#[tokio::test]
async fn an_event_refused_as_dead_letter_too_stays_in_the_spool() {
    let broker = Broker::default();
    broker.set().poison = [Seq(2)].into();
    broker.set().accepts_dead_letters = DeadLetterPolicy::Harmless;
    let rig = Rig::start(broker.clone());
    rig.append(1..=3).await;
    rig.until("the end", |rig| rig.cursor.position() == Seq(3))
        .await;
    assert_eq!(
        rig.stored_dead_letters(),
        [(2, "too_large".to_owned(), "event 2".to_owned())]
    );
    assert_eq!(rig.state.metrics().refused, 1);
    assert_eq!(rig.drain().await, [1, 3]);
    assert_eq!(broker.set().made_smaller, 0);
}

#[tokio::test]
async fn a_dead_letter_refused_alone_ends_the_poison_search() {
    let broker = Broker::default();
    broker.set().down = true;
    broker.set().poison = [Seq(9)].into();
    broker.set().accepts_dead_letters = DeadLetterPolicy::Harmless;
    let rig = Rig::start(broker.clone());
    rig.append(1..=8).await;
    rig.append_as(Kind::Rejected, 9..=9).await;
    rig.append(10..=40).await;
    broker.set().down = false;
    rig.until("the end", |rig| rig.cursor.position() == Seq(40))
        .await;
    assert_eq!(rig.stored_dead_letters().len(), 1);
    let behaviour = broker.set();
    assert_eq!(
        behaviour.made_smaller, 0,
        "a refused dead letter must not make batches smaller"
    );
}

#[tokio::test]
async fn a_closed_dead_letter_topic_does_not_stop_publishing() {
    let broker = Broker::default();
    broker.set().down = true;
    broker.set().accepts_dead_letters = DeadLetterPolicy::None;
    let rig = Rig::start(broker.clone());
    rig.append(1..=6).await;
    rig.append_as(Kind::Rejected, 7..=8).await;
    rig.append(9..=40).await;
    let tries = {
        let mut behaviour = broker.set();
        behaviour.down = false;
        behaviour.sessions
    };
    rig.until("the end", |rig| rig.cursor.position() == Seq(40))
        .await;
    let numbers = rig.stored_dead_letters().into_iter().map(|(seq, ..)| seq);
    assert_eq!(numbers.collect::<Vec<_>>(), [7, 8]);
    assert_eq!(rig.state.metrics().refused, 2);
    let expected: Vec<u64> = (1..=40).filter(|seq| ![7, 8].contains(seq)).collect();
    assert_eq!(rig.drain().await, expected);
    let behaviour = broker.set();
    assert_eq!(behaviour.sessions, tries + 2);
    assert_eq!(behaviour.made_smaller, 0);
}
