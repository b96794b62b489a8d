//! What may be lost with a relay's machine if `answer_after = "broker"`.
//!
//! An answer does not say whether it was given after the disk or after the broker. So a sampler keeps reading the
//! relay's metrics, and [`LostMachines::judge`] derives from them which answers were certainly given after the broker:
//! of these, nothing may be missing. Of the others, at most the last `recall_at_risk_events` and the answers since.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::ledger::{Callback, Ledger, now};
use super::rig::Connection;
use super::verdict::Verdict;

/// How long an answer waits for the broker: long enough for a working broker on a busy machine.
pub const ANSWER_DEADLINE: Duration = Duration::from_millis(1500);

/// The time between two samples.
const PAUSE: Duration = Duration::from_millis(20);

/// What the metrics said at some moment between two times.
#[derive(Debug, Clone, Copy)]
struct Sample {
    asked_at: u64,
    answered_at: u64,
    /// `recall_answers_total{after="disk"}`
    after_disk: u64,
    /// `recall_at_risk_events`
    at_risk: u64,
}

/// Reads a relay's metrics until it is stopped or dropped.
pub struct Sampler {
    lives: Arc<()>,
    thread: JoinHandle<Vec<Sample>>,
}

impl Sampler {
    /// Starts with an empty spool, so nothing is at risk yet.
    pub fn start(admin: SocketAddr, started_at: u64) -> Self {
        let lives = Arc::new(());
        let is_wanted = Arc::downgrade(&lives);
        let mut samples = vec![Sample {
            asked_at: started_at,
            answered_at: started_at,
            after_disk: 0,
            at_risk: 0,
        }];
        let thread = thread::spawn(move || {
            let mut connection = None;
            while is_wanted.strong_count() > 0 {
                samples.extend(Sample::take(admin, &mut connection));
                thread::park_timeout(PAUSE);
            }
            samples
        });
        Self { lives, thread }
    }

    /// Ends the samples. Must be called after the relay was killed.
    pub fn stop(self, ended_at: u64) -> LostMachine {
        drop(self.lives);
        self.thread.thread().unpark();
        let samples = self.thread.join().expect("the sampler panicked");
        LostMachine { samples, ended_at }
    }
}

impl Sample {
    /// `None` if the relay does not answer, as when it was killed.
    fn take(admin: SocketAddr, connection: &mut Option<Connection>) -> Option<Self> {
        let asked_at = now();
        let open = connection.take();
        let mut open = open.map_or_else(|| Connection::open(admin), Ok).ok()?;
        let answer = open.request("GET", "/metrics", b"").ok()?;
        let answered_at = now();
        *connection = Some(open);
        let value = |series: &str| -> Option<u64> {
            let mut lines = answer.text().lines();
            let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
            value.split('.').next()?.parse().ok()
        };
        let expect = |series| value(series).unwrap_or_else(|| panic!("/metrics has no {series}"));
        Some(Self {
            asked_at,
            answered_at,
            after_disk: expect("recall_answers_total{after=\"disk\"}"),
            at_risk: expect("recall_at_risk_events"),
        })
    }
}

/// A machine that was lost, and what its relay's metrics had said.
#[derive(Debug)]
pub struct LostMachine {
    /// Never empty.
    samples: Vec<Sample>,
    ended_at: u64,
}

impl LostMachine {
    fn last(&self) -> &Sample {
        &self.samples[self.samples.len() - 1]
    }

    /// Whether every answer of this machine was given after the broker: all until the last sample, and no callback took
    /// as long as the deadline. (Answers stop waiting only after three callbacks that waited until their deadline.)
    fn always_waited(&self, its: &[((usize, usize), &Callback)]) -> bool {
        let deadline = ANSWER_DEADLINE.as_micros();
        let is_quick = |it: &Callback| u128::from(it.ended_at - it.sent_at) < deadline;
        self.last().after_disk == 0 && its.iter().all(|(_, it)| is_quick(it))
    }

    /// Whether the relay has given no answer after the disk from before this request until after its answer.
    fn waited(&self, callback: &Callback) -> bool {
        let before = (self.samples.iter()).rfind(|it| it.answered_at <= callback.sent_at);
        let after = (self.samples.iter()).find(|it| it.asked_at >= callback.ended_at);
        let same = |before: &Sample, after: &Sample| before.after_disk == after.after_disk;
        before
            .zip(after)
            .is_some_and(|(before, after)| same(before, after))
    }

    /// Adds to `losses`. `began_at` is the end of the machine before.
    fn judge(&self, began_at: u64, ledger: &Ledger, verdict: &mut Verdict, losses: &mut Losses) {
        // A request that began before the relay's end was answered by this relay or by none.
        let is_its = |it: &Callback| (began_at..self.ended_at).contains(&it.sent_at);
        let its: Vec<_> = ledger.callbacks().filter(|(_, it)| is_its(it)).collect();
        let always_waited = self.always_waited(&its);
        let (after_broker, others): (BTreeMap<_, _>, BTreeMap<_, _>) = (its.iter().copied())
            .filter(|(_, it)| it.is_ok)
            .partition(|(_, it)| always_waited || self.waited(it));

        let sample = self.last();
        let since = others.values().filter(|it| it.ended_at >= sample.asked_at);
        let at_most = sample.at_risk + since.count() as u64;
        let is_loss = |place: &(usize, usize)| others.contains_key(place);
        let lost = verdict.missing.iter().filter(|place| is_loss(place));
        let lost = lost.count() as u64;
        if lost <= at_most {
            verdict.missing.retain(|place| !is_loss(place));
        }

        // A broker may append the events of a lost relay after those of the next one. But an event that it had
        // confirmed before the answer cannot be late.
        let before = verdict.out_of_order.len();
        verdict
            .out_of_order
            .retain(|(conversation, number, newest)| {
                let (late, newest) = ((*conversation, *number), (*conversation, *newest));
                let is_later = |it: &Callback| it.sent_at >= self.ended_at;
                let is_excused = ledger.callback(late).is_some_and(is_its)
                    && ledger.callback(newest).is_some_and(is_later)
                    && !after_broker.contains_key(&late);
                !is_excused
            });

        losses.machines += 1;
        losses.after_broker += after_broker.len() as u64;
        losses.others += others.len() as u64;
        losses.lost += lost;
        losses.at_most += if others.is_empty() { 0 } else { at_most };
        losses.late += (before - verdict.out_of_order.len()) as u64;
    }
}

/// All machines of a scenario that were lost, in order.
#[derive(Debug, Default)]
pub struct LostMachines(Vec<LostMachine>);

/// The losses with all machines.
#[derive(Debug, Clone, Copy, Default)]
pub struct Losses {
    pub machines: u64,
    /// Callbacks answered OK, certainly after the broker.
    pub after_broker: u64,
    /// The other callbacks answered OK.
    pub others: u64,
    /// How many of the others are missing.
    pub lost: u64,
    /// How many of the others may be missing: for each machine, the last `recall_at_risk_events` and the answers since.
    pub at_most: u64,
    /// Events that arrived after newer ones of their conversation from the next relay.
    pub late: u64,
}

impl LostMachines {
    pub fn add(&mut self, machine: LostMachine) {
        self.0.push(machine);
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes from `verdict` what may be missing or out of order because a machine was lost. If a machine has
    /// lost more than allowed, all of its events stay missing.
    pub fn judge(&self, ledger: &Ledger, verdict: &mut Verdict) -> Losses {
        let mut losses = Losses::default();
        let mut began_at = 0;
        for machine in &self.0 {
            machine.judge(began_at, ledger, verdict, &mut losses);
            began_at = machine.ended_at;
        }
        losses
    }
}

/// Tests the rule itself, as one of the trials.
pub fn distinguishes_answers_after_the_broker() {
    let sample = |at, after_disk, at_risk| Sample {
        asked_at: at,
        answered_at: at + 1,
        after_disk,
        at_risk,
    };
    let judge_all = |samples: &[Sample], lines: &[&str], mut verdict: Verdict| {
        let mut ledger = Ledger::default();
        for line in lines {
            ledger.add_line(line).unwrap();
        }
        let machine = LostMachine {
            samples: samples.to_vec(),
            ended_at: 10_000_000,
        };
        let losses = LostMachines(vec![machine]).judge(&ledger, &mut verdict);
        (losses, verdict)
    };
    let judge = |samples: &[Sample], lines: &[&str], missing: &[(usize, usize)]| {
        let verdict = Verdict {
            missing: missing.to_vec(),
            ..Verdict::default()
        };
        let (losses, verdict) = judge_all(samples, lines, verdict);
        (losses, verdict.missing)
    };
    // Every answer has waited for the broker, so the gauge is no excuse. The last one is of the next machine.
    let quick = [
        "0 1 ok 900 50000",
        "0 2 ok 900 9000000",
        "0 3 ok 900 11000000",
    ];
    let calm = [sample(0, 0, 0), sample(100_000, 0, 5)];
    let (losses, missing) = judge(&calm, &quick, &[(0, 2), (0, 3)]);
    assert_eq!(missing, [(0, 2), (0, 3)]);
    assert_eq!((losses.after_broker, losses.at_most), (2, 0));
    // One callback has waited until the deadline: the breaker may be open. The first answer has waited all the same.
    let late = [&quick[..], &["1 1 none 1600000 10000050"]].concat();
    let (losses, missing) = judge(&calm, &late, &[(0, 1), (0, 2)]);
    assert_eq!(missing, [(0, 1)]);
    assert_eq!((losses.after_broker, losses.others), (1, 1));
    assert_eq!((losses.lost, losses.at_most), (1, 6));
    // An answer has not waited: one of these two.
    let trouble = [
        sample(0, 0, 0),
        sample(100_000, 1, 1),
        sample(9_500_000, 1, 1),
    ];
    let both = ["0 1 ok 900 50000", "1 1 ok 900 50000", "0 2 ok 900 9000000"];
    assert_eq!(judge(&trouble, &both, &[(0, 1)]).1, []);
    let (losses, missing) = judge(&trouble, &both, &[(0, 1), (0, 2), (1, 1)]);
    assert_eq!(missing, [(0, 1), (0, 2), (1, 1)]);
    assert_eq!(
        (losses.lost, losses.at_most, losses.after_broker),
        (2, 1, 1)
    );
    // The first arrived after an event of the next machine, the second after one of the same machine; the third was
    // answered after the broker.
    let verdict = Verdict {
        out_of_order: vec![(0, 2, 3), (0, 1, 2), (0, 1, 3)],
        ..Verdict::default()
    };
    let (losses, verdict) = judge_all(&calm, &late, verdict);
    assert_eq!(verdict.out_of_order, [(0, 1, 2), (0, 1, 3)]);
    assert_eq!(losses.late, 1);
}
