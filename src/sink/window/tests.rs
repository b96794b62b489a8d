//! Tests the window with examples, and against simple models in random histories.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::event::tests::event;
use crate::sink::Refusal;

fn delivery(seq: u64) -> Delivery {
    sized(seq, 0)
}

fn sized(seq: u64, bytes: usize) -> Delivery {
    Delivery {
        seq: Seq(seq),
        event: Arc::new(event(seq.into(), vec![b'x'; bytes])),
        refusal: None,
        is_resent: false,
    }
}

/// Adds events. Returns those that must be published.
fn admit(window: &mut Window, seqs: impl IntoIterator<Item = u64>) -> Vec<u64> {
    seqs.into_iter()
        .filter(|seq| window.admit(delivery(*seq)))
        .collect()
}

#[test]
fn a_gap_in_the_confirms_stops_the_cursor() {
    let mut window = Window::default();
    admit(&mut window, [3, 5, 6]);
    assert_eq!(window.confirm(&[Seq(5), Seq(5), Seq(99)]), 1);
    assert_eq!(window.advance(), None);
    window.confirm(&[Seq(3)]);
    assert_eq!(window.advance(), Some(Seq(5)));
    assert_eq!((window.capacity(3, 1), window.capacity(3, 0)), (2, 0));
}

#[test]
fn unreadable_events_are_skipped() {
    let mut window = Window::default();
    admit(&mut window, [1]);
    window.skip_unreadable(Seq(2));
    assert_eq!(window.advance(), None);
    window.confirm(&[Seq(1)]);
    assert_eq!(window.advance(), Some(Seq(2)));
    window.skip_unreadable(Seq(3));
    assert_eq!(window.advance(), Some(Seq(3)));
}

#[test]
fn a_restart_skips_events_confirmed_ahead() {
    let mut window = Window::default();
    admit(&mut window, [1, 2, 3]);
    window.confirm(&[Seq(2)]);
    window.restart();
    assert!(window.is_empty());
    assert_eq!(admit(&mut window, [1, 2, 3]), [1, 3]);
    window.confirm(&[Seq(1)]);
    assert_eq!(window.advance(), Some(Seq(2)));
}

/// What the model knows of an added event.
#[derive(Debug, Clone)]
struct Known {
    seq: u64,
    bytes: usize,
    readable: bool,
    confirmed: bool,
}

#[derive(Debug, Clone)]
enum WindowStep {
    /// Adds the next event: its distance from the previous one, and its size; none if it cannot be read.
    Admit(u64, Option<usize>),
    /// Any numbers, including those that are not in the window.
    Confirm(Vec<u64>),
    Replace(u64),
    /// A new session reads from the cursor again.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<WindowStep>> {
    let step = prop_oneof![
        8 => (1..3_u64, prop::option::weighted(0.8, 0..100_usize))
            .prop_map(|(gap, bytes)| WindowStep::Admit(gap, bytes)),
        4 => prop::collection::vec(0..60_u64, 1..8).prop_map(WindowStep::Confirm),
        1 => (0..60_u64).prop_map(WindowStep::Replace),
        1 => Just(WindowStep::Restart),
    ];
    prop::collection::vec(step, 1..80)
}

fn admit_or_pass(window: &mut Window, event: &Known) -> bool {
    if event.readable {
        window.admit(sized(event.seq, event.bytes))
    } else {
        window.skip_unreadable(Seq(event.seq));
        false
    }
}

proptest! {
    /// Compares the window, in any history, with a list of the events added after the cursor: which must be published,
    /// how far the cursor advances, and how many bytes are in flight.
    #[test]
    fn matches_a_plain_list_in_any_history(steps in steps()) {
        let mut window = Window::default();
        let mut list: Vec<Known> = Vec::new();
        let mut newest = 0;
        for step in steps {
            match step {
                WindowStep::Admit(gap, bytes) => {
                    newest += gap;
                    let readable = bytes.is_some();
                    let event = Known {
                        seq: newest,
                        bytes: bytes.unwrap_or_default(),
                        readable,
                        confirmed: !readable,
                    };
                    prop_assert_eq!(admit_or_pass(&mut window, &event), readable);
                    list.push(event);
                }
                WindowStep::Confirm(seqs) => {
                    let mut confirmed = 0;
                    for event in list.iter_mut().filter(|event| seqs.contains(&event.seq)) {
                        confirmed += u64::from(!std::mem::replace(&mut event.confirmed, true));
                    }
                    let seqs: Vec<Seq> = seqs.into_iter().map(Seq).collect();
                    prop_assert_eq!(window.confirm(&seqs), confirmed);
                }
                WindowStep::Replace(seq) => {
                    let dead_letter = window.delivery(Seq(seq)).cloned().map(|delivery| Delivery {
                        refusal: Some(Refusal { reason: "r", detail: String::new() }),
                        ..delivery
                    });
                    let known = list.iter().any(|event| event.seq == seq && !event.confirmed);
                    prop_assert_eq!(dead_letter.is_some(), known);
                    if let Some(dead_letter) = dead_letter {
                        window.replace(dead_letter);
                        prop_assert!(window.delivery(Seq(seq)).is_some_and(Delivery::is_dead_letter));
                    }
                }
                WindowStep::Restart => {
                    window.restart();
                    prop_assert!(window.is_empty());
                    for event in &list {
                        prop_assert_eq!(admit_or_pass(&mut window, event), !event.confirmed);
                    }
                }
            }
            let prefix = list.iter().take_while(|event| event.confirmed).count();
            let passed = list.drain(..prefix).next_back().map(|event| Seq(event.seq));
            prop_assert_eq!(window.advance(), passed);
            let in_flight: Vec<&Known> = list.iter().filter(|event| !event.confirmed).collect();
            let seqs: Vec<u64> = in_flight.iter().map(|event| event.seq).collect();
            prop_assert_eq!(window.in_flight().map(|d| d.seq.0).collect::<Vec<_>>(), seqs);
            prop_assert_eq!(window.last(), list.last().map(|event| Seq(event.seq)));
            prop_assert_eq!(window.is_empty(), list.is_empty());
            let bytes: usize = in_flight.iter().map(|event| event.bytes).sum();
            prop_assert_eq!(window.capacity(100, bytes + 1), 100 - list.len());
            prop_assert_eq!(window.capacity(100, bytes), 0);
            prop_assert_eq!(window.capacity(list.len() / 2, bytes + 1), 0);
        }
        // Nothing before the cursor is remembered.
        let all: Vec<Seq> = list.iter().map(|event| Seq(event.seq)).collect();
        window.confirm(&all);
        window.advance();
        prop_assert_eq!(window.ahead, BTreeSet::new());
    }

    /// In whatever order events are confirmed, and whenever sessions restart, the cursor never passes an unconfirmed
    /// event, and in the end it passes all of them.
    #[test]
    fn the_cursor_never_passes_an_unconfirmed_event(
        order in Just((1..=30_u64).collect::<Vec<_>>()).prop_shuffle(),
        restarts in prop::collection::vec(any::<bool>(), 30),
    ) {
        let mut window = Window::default();
        let mut confirmed = BTreeSet::new();
        let mut cursor = 0;
        admit(&mut window, 1..=30);
        for (seq, restart) in order.into_iter().zip(restarts) {
            if restart {
                window.restart();
                let to_send = admit(&mut window, cursor + 1..=30);
                prop_assert!(to_send.iter().all(|seq| !confirmed.contains(seq)));
            }
            window.confirm(&[Seq(seq)]);
            confirmed.insert(seq);
            cursor = window.advance().map_or(cursor, |seq| seq.0);
            prop_assert!((1..=cursor).all(|seq| confirmed.contains(&seq)));
        }
        prop_assert_eq!(cursor, 30);
    }
}
