//! Waiting for confirms.

use futures_util::FutureExt as _;

use super::*;
use crate::event::tests::event;
use crate::telemetry::CapturedLog;

const DEADLINE: Duration = Duration::from_secs(1);

struct Rig {
    confirms: Confirms,
    now: Instant,
}

impl Rig {
    fn new() -> Self {
        Self {
            confirms: Confirms::new("kafka", Seq(10), DEADLINE),
            now: Instant::now(),
        }
    }

    fn waiter(&self, seq: u64) -> ConfirmWaiter<'_> {
        self.confirms.waiter(Seq(seq), 0, true, self.now)
    }

    fn confirmed<const N: usize>(&self, seqs: [u64; N]) {
        self.confirms.confirmed(&seqs.map(Seq), self.now);
    }

    /// Whether an answer for this event of a partition would wait.
    fn waits_in(&self, partition: usize, seq: u64) -> bool {
        let waiter = self.confirms.waiter(Seq(seq), partition, true, self.now);
        matches!(waiter.state, WaiterState::Waiting(_))
    }

    fn waits(&self, seq: u64) -> bool {
        self.waits_in(0, seq)
    }

    fn miss(&self, times: usize) {
        for _ in 0..times {
            self.confirms.missed(0, DEADLINE / 2, self.now);
        }
    }

    fn asked_for(&self) -> usize {
        self.confirms.state().asked.len()
    }
}

/// What a wait has come to; none if it goes on.
fn poll(waiter: ConfirmWaiter<'_>) -> Option<bool> {
    waiter.wait(Instant::now()).now_or_never()
}

#[tokio::test]
async fn an_answer_waits_until_its_event_is_confirmed() {
    let rig = Rig::new();
    let [first, second, repeated] = [11, 12, 12].map(|seq| rig.waiter(seq));
    let mut first = Box::pin(first.wait(Instant::now()));
    assert_eq!(first.as_mut().now_or_never(), None);
    // Not in order.
    rig.confirmed([12]);
    assert_eq!(poll(second), Some(true));
    assert_eq!(poll(repeated), Some(true));
    assert_eq!(first.as_mut().now_or_never(), None);
    rig.confirmed([11]);
    assert_eq!(first.now_or_never(), Some(true));
    assert_eq!(rig.asked_for(), 0);
}

#[tokio::test]
async fn what_is_confirmed_already_needs_no_wait() {
    let rig = Rig::new();
    rig.confirmed([12]);
    for (seq, is_confirmed) in [
        (3, Some(true)),
        (10, Some(true)),
        (11, None),
        (12, Some(true)),
    ] {
        assert_eq!(poll(rig.waiter(seq)), is_confirmed, "{seq}");
    }
    rig.confirms.reached(Seq(12));
    assert!(rig.confirms.state().ahead.is_empty());
    assert_eq!(poll(rig.waiter(11)), Some(true));
}

#[tokio::test]
async fn a_wait_ends_at_the_deadline_of_its_request() {
    let deadline = Duration::from_millis(100);
    let confirms = Confirms::new("kafka", Seq(10), deadline);
    let began = Instant::now();
    let waiter = confirms.waiter(Seq(11), 0, true, began);
    assert!(!waiter.wait(began).await);
    assert!(began.elapsed() >= deadline);
    // This request has been on its way for longer than that.
    let waiter = confirms.waiter(Seq(12), 0, true, began);
    assert_eq!(waiter.wait(began).now_or_never(), Some(false));
    assert!(confirms.state().asked.is_empty());
}

#[test]
fn a_client_that_disconnects_leaves_nothing() {
    let rig = Rig::new();
    let (first, other) = (rig.waiter(11), rig.waiter(11));
    drop(first);
    rig.confirmed([11]);
    assert!(matches!(other.state, WaiterState::Waiting(_)));
    drop(rig.waiter(12));
    assert_eq!(rig.asked_for(), 0);
    assert!(rig.waits(13));
}

#[test]
fn after_missed_deadlines_nobody_waits_until_a_confirm_comes_in_time() {
    let mut rig = Rig::new();
    rig.miss(2);
    assert!(rig.waits(13));
    rig.miss(1);
    // The first one is the probe.
    assert!(!rig.waits(14));
    assert!(!rig.waits(15));
    rig.now += DEADLINE + Duration::from_millis(1);
    rig.confirmed([11, 12, 13, 14]);
    assert!(!rig.waits(16), "the probe was late");
    rig.now += DEADLINE;
    rig.confirmed([15]);
    assert!(!rig.waits(17), "the next probe is not confirmed");
    rig.confirmed([16]);
    assert!(rig.waits(18));
    assert_eq!(rig.asked_for(), 0);
}

/// For example, no queue takes it, and others are confirmed.
#[test]
fn a_probe_that_is_never_confirmed_is_replaced() {
    let mut rig = Rig::new();
    rig.miss(3);
    assert!(!rig.waits(11));
    for seq in 12..20 {
        rig.now += DEADLINE + Duration::from_millis(1);
        assert!(!rig.waits(seq));
        assert_eq!(rig.asked_for(), 1, "the last probe alone");
    }
    rig.confirmed([19]);
    assert!(rig.waits(20));
}

#[test]
fn a_probe_survives_a_repeated_callback_that_does_not_wait_for_it() {
    let rig = Rig::new();
    rig.miss(3);
    assert!(!rig.waits(11));
    // It is another partition's now, whose breaker is closed.
    rig.confirms.partitioned(Partitioning {
        count: 6,
        ..Partitioning::default()
    });
    assert!(rig.waits_in(4, 11));
    rig.confirmed([11]);
    assert!(rig.waits(12));
}

#[test]
fn after_a_quiet_time_one_answer_waits_again() {
    let mut rig = Rig::new();
    rig.miss(3);
    assert!(!rig.waits(11));
    rig.now += Duration::from_secs(59);
    assert!(!rig.waits(12));
    rig.now += Duration::from_secs(60);
    assert!(rig.waits(13));
    rig.miss(1);
    assert!(!rig.waits(14));
}

#[test]
fn a_stop_ends_all_waits() {
    let rig = Rig::new();
    let waiter = rig.waiter(11);
    rig.confirms.stop_waiting();
    assert!(!rig.waits(12));
    assert_eq!(rig.asked_for(), 0);
    drop(waiter);
}

#[tokio::test]
async fn only_deadlines_in_a_row_open_a_breaker() {
    let rig = Rig::new();
    for seq in 11..20 {
        rig.miss(2);
        let waiter = rig.waiter(seq);
        rig.confirmed([seq]);
        assert_eq!(poll(waiter), Some(true));
    }
    assert!(rig.waits(20));
}

/// The deadline is that of the request: what the disk has taken is not the broker's fault. What another broker has taken
/// meanwhile counts.
#[tokio::test]
async fn only_the_time_since_the_commit_counts() {
    let deadline = Duration::from_millis(100);
    let confirms = Confirms::new("kafka", Seq(10), deadline);
    for seq in 11..20 {
        let now = Instant::now();
        let began = now.checked_sub(deadline * 3 / 4).unwrap();
        assert!(!confirms.waiter(Seq(seq), 0, true, now).wait(began).await);
    }
    assert!(confirms.is_waited_for());
    for seq in 21..24 {
        let began = Instant::now();
        let waiter = confirms.waiter(Seq(seq), 0, true, began);
        // As if it were asked after another broker has confirmed.
        tokio::time::sleep(deadline * 3 / 4).await;
        assert!(!waiter.wait(began).await);
    }
    assert!(!confirms.is_waited_for());
}

#[test]
fn each_partition_has_its_own_breaker() {
    let rig = Rig::new();
    rig.confirms.partitioned(Partitioning {
        count: 3,
        partition_of: |event, count| event.body.len() % count,
    });
    assert_eq!(rig.confirms.partition(&event(7, "body")), 1);
    rig.miss(3);
    assert!(!rig.waits_in(0, 14));
    assert!(rig.waits_in(1, 15));
    // The next session has other partitions: an index from before must do no harm.
    rig.confirms.partitioned(Partitioning {
        count: 0,
        ..Partitioning::default()
    });
    assert!(rig.waits_in(2, 16));
}

#[tokio::test]
async fn what_no_broker_accepts_is_answered_because_it_is_on_disk() {
    let rig = Rig::new();
    let (refused, unreadable) = (rig.waiter(11), rig.waiter(12));
    rig.confirms.refused(&[Seq(11)]);
    assert_eq!(poll(refused), Some(false));
    rig.confirms.reached(Seq(12));
    assert_eq!(poll(unreadable), Some(false));
    // Nor are they confirmed when the callback is repeated; others may be, but that is not known.
    for seq in [11, 12, 3] {
        let repeated = rig.confirms.waiter(Seq(seq), 0, false, rig.now);
        assert_eq!(poll(repeated), Some(false), "{seq}");
    }
    // If it was the probe, another event becomes that.
    rig.miss(3);
    assert!(!rig.waits(16));
    rig.confirms.refused(&[Seq(16)]);
    assert!(!rig.waits(17));
    rig.confirmed([17]);
    assert!(rig.waits(18));
}

#[test]
fn the_log_says_that_answers_do_not_wait_and_when_they_do_again() {
    let lines = CapturedLog::default().lines(|| {
        let mut rig = Rig::new();
        // It opens and closes again and again: for the log, that is one outage.
        for seq in 11..20 {
            rig.miss(5);
            rig.confirms.remind(rig.now);
            assert!(!rig.waits(seq));
            rig.confirmed([seq]);
            rig.confirms.remind(rig.now);
            rig.now += Duration::from_secs(1);
        }
        assert!(rig.confirms.is_waited_for());
        rig.now += SAME_OUTAGE;
        rig.confirms.remind(rig.now);
        rig.confirms.remind(rig.now);
        // This is another one.
        rig.miss(3);
        assert!(!rig.confirms.is_waited_for());
    });
    let codes: Vec<_> = (lines.iter())
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(
        codes,
        [
            "answers_after_disk",
            "answers_wait_for_broker",
            "answers_after_disk"
        ]
    );
}
