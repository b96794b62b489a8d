//! What the relay did in the last 15 minutes: a ring of samples, so that a page has its plots at once. It samples what
//! the metrics count, so handling a callback does no extra work. Its memory is bounded, and a restart empties it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::buckets::Buckets;
use crate::admin::Observed;
use crate::event::{Seq, UnixMillis};
use crate::spool::ReadError;

/// How often a sample is taken.
const EVERY: Duration = Duration::from_secs(5);

/// How many samples are kept: 15 minutes.
const CAPACITY: usize = 180;

/// How long a sample waits for the spool's file. If the disk hangs, samples go on without the ages of events.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// The oldest event that each sink has not confirmed; None if there is none. Empty if that could not be read.
type OldestOfSinks = Vec<Option<OldestUnconfirmed>>;

/// The oldest event that a sink has not confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OldestUnconfirmed {
    appended: UnixMillis,
    /// The cursor after which it was found: once the cursor has moved on, the event is confirmed.
    cursor: Seq,
}

/// The samples of the last 15 minutes.
#[derive(Debug, Default)]
pub(in crate::admin) struct History(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    last: Option<Reading>,
    samples: VecDeque<Sample>,
}

/// What the metrics say at one moment. The vectors have an element for each sink.
#[derive(Debug, Clone)]
struct Reading {
    at: Instant,
    time: UnixMillis,
    answered: BTreeMap<&'static str, u64>,
    answer: Buckets,
    commit: Buckets,
    spool_used_bytes: u64,
    lags: Vec<u64>,
    confirmed: Vec<u64>,
    oldest: OldestOfSinks,
}

/// What happened between two readings, and the state at the second one.
#[derive(Debug, Default)]
struct Sample {
    /// Requests per second by outcome; those that did not occur are left out.
    answered: Vec<(&'static str, f64)>,
    /// p50 and p99 in seconds.
    answer: [Option<f64>; 2],
    commit: [Option<f64>; 2],
    spool_used_bytes: u64,
    unconfirmed_events: u64,
    sinks: Vec<SinkSample>,
}

#[derive(Debug)]
struct SinkSample {
    lag: u64,
    oldest_seconds: Option<f64>,
    confirmed_per_second: f64,
}

/// The samples in columns of the same length; the oldest sample comes first. A value is null if there is none.
#[derive(Debug, Serialize)]
pub(super) struct HistoryBody {
    every_seconds: u64,
    samples: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    newest_at: Option<UnixMillis>,
    /// By outcome; those that did not occur are left out.
    callbacks_per_second: BTreeMap<&'static str, Vec<f64>>,
    answer_p50_seconds: Vec<Option<f64>>,
    answer_p99_seconds: Vec<Option<f64>>,
    commit_p50_seconds: Vec<Option<f64>>,
    commit_p99_seconds: Vec<Option<f64>>,
    spool_used_bytes: Vec<u64>,
    unconfirmed_events: Vec<u64>,
    sinks: BTreeMap<&'static str, SinkHistoryBody>,
}

#[derive(Debug, Serialize)]
struct SinkHistoryBody {
    lag: Vec<u64>,
    oldest_unconfirmed_seconds: Vec<Option<f64>>,
    confirmed_per_second: Vec<f64>,
}

impl History {
    /// Takes a sample every five seconds. Never returns.
    pub(in crate::admin) async fn watch(&self, observed: &Observed) -> Infallible {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unfinished = None;
        loop {
            ticks.tick().await;
            let oldest = read_oldest(observed, &mut unfinished).await;
            self.ring().add(Reading::of(observed, oldest));
        }
    }

    /// When the oldest event that the sink number `sink` has not confirmed was appended. None if there is none, or if
    /// the sink, whose cursor is now `cursor`, has confirmed the one of the last sample.
    pub(super) fn oldest(&self, sink: usize, cursor: Seq) -> Option<UnixMillis> {
        self.ring().oldest(sink, cursor)
    }

    pub(super) fn body(&self, sinks: &[&'static str]) -> HistoryBody {
        self.ring().body(sinks)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the spool's file on another thread. While an earlier read is unfinished, waits for that one.
async fn read_oldest(
    observed: &Observed,
    unfinished: &mut Option<JoinHandle<OldestOfSinks>>,
) -> OldestOfSinks {
    let mut reading = unfinished.take().unwrap_or_else(|| {
        let (spool, sinks) = (observed.spool.clone(), observed.sinks.clone());
        spawn_blocking(move || {
            let oldest = sinks.iter().map(|sink| {
                let cursor = sink.cursor.position();
                let appended = spool.appended_after(cursor)?;
                Ok::<_, ReadError>(appended.map(|appended| OldestUnconfirmed { appended, cursor }))
            });
            oldest.collect::<Result<_, _>>().unwrap_or_default()
        })
    });
    if let Ok(oldest) = timeout(READ_TIMEOUT, &mut reading).await {
        return oldest.unwrap_or_default();
    }
    *unfinished = Some(reading);
    Vec::new()
}

impl Reading {
    fn of(observed: &Observed, oldest: OldestOfSinks) -> Self {
        let status = observed.spool.status();
        let sinks = &observed.sinks;
        Self {
            at: Instant::now(),
            time: UnixMillis::now(),
            answered: observed.answers.by_outcome(),
            answer: Buckets::of(observed.answers.seconds()),
            commit: Buckets::of(observed.spool.commit_seconds()),
            spool_used_bytes: status.used_bytes,
            lags: sinks.iter().map(|sink| sink.lag(status.last)).collect(),
            confirmed: sinks
                .iter()
                .map(|sink| sink.state.metrics().confirmed)
                .collect(),
            oldest,
        }
    }

    /// The sample that ends with this reading and began with another one.
    fn since(&self, began: &Self) -> Sample {
        let seconds = self.at.saturating_duration_since(began.at).as_secs_f64();
        let rate = |now: u64, before: u64| per_second(now.saturating_sub(before), seconds);
        let quantiles = |now: &Buckets, before: &Buckets| {
            let buckets = now.since(before);
            [0.5, 0.99].map(|quantile| Some(rounded(buckets.quantile(quantile)?, 1e6)))
        };
        let answered = self.answered.iter().map(|(outcome, count)| {
            let before = began.answered.get(outcome).copied().unwrap_or_default();
            (*outcome, rate(*count, before))
        });
        let sinks = self.lags.iter().enumerate().map(|(sink, lag)| SinkSample {
            lag: *lag,
            oldest_seconds: self.oldest.get(sink).map(|oldest| {
                oldest.map_or(0.0, |oldest| seconds_between(oldest.appended, self.time))
            }),
            confirmed_per_second: rate(self.confirmed[sink], began.confirmed[sink]),
        });
        Sample {
            answered: answered.filter(|(_, rate)| *rate > 0.0).collect(),
            answer: quantiles(&self.answer, &began.answer),
            commit: quantiles(&self.commit, &began.commit),
            spool_used_bytes: self.spool_used_bytes,
            unconfirmed_events: self.lags.iter().copied().max().unwrap_or_default(),
            sinks: sinks.collect(),
        }
    }
}

impl Ring {
    fn add(&mut self, reading: Reading) {
        if let Some(last) = &self.last {
            if self.samples.len() == CAPACITY {
                self.samples.pop_front();
            }
            self.samples.push_back(reading.since(last));
        }
        self.last = Some(reading);
    }

    fn oldest(&self, sink: usize, cursor: Seq) -> Option<UnixMillis> {
        let oldest = (*self.last.as_ref()?.oldest.get(sink)?)?;
        (cursor <= oldest.cursor).then_some(oldest.appended)
    }

    fn body(&self, sinks: &[&'static str]) -> HistoryBody {
        let outcomes: BTreeSet<&'static str> = (self.samples.iter())
            .flat_map(|sample| sample.answered.iter().map(|(outcome, _)| *outcome))
            .collect();
        let rates = |outcome: &'static str| {
            let rate = |sample: &Sample| {
                let found = sample.answered.iter().find(|(name, _)| *name == outcome);
                found.map_or(0.0, |(_, rate)| *rate)
            };
            self.column(rate)
        };
        let of_sink = |sink: usize| SinkHistoryBody {
            lag: self.column(|sample| sample.sinks[sink].lag),
            oldest_unconfirmed_seconds: self.column(|sample| sample.sinks[sink].oldest_seconds),
            confirmed_per_second: self.column(|sample| sample.sinks[sink].confirmed_per_second),
        };
        let newest = self.last.as_ref().filter(|_| !self.samples.is_empty());
        HistoryBody {
            every_seconds: EVERY.as_secs(),
            samples: self.samples.len(),
            newest_at: newest.map(|reading| reading.time),
            callbacks_per_second: outcomes
                .into_iter()
                .map(|outcome| (outcome, rates(outcome)))
                .collect(),
            answer_p50_seconds: self.column(|sample| sample.answer[0]),
            answer_p99_seconds: self.column(|sample| sample.answer[1]),
            commit_p50_seconds: self.column(|sample| sample.commit[0]),
            commit_p99_seconds: self.column(|sample| sample.commit[1]),
            spool_used_bytes: self.column(|sample| sample.spool_used_bytes),
            unconfirmed_events: self.column(|sample| sample.unconfirmed_events),
            sinks: sinks
                .iter()
                .enumerate()
                .map(|(sink, name)| (*name, of_sink(sink)))
                .collect(),
        }
    }

    fn column<T>(&self, read: impl Fn(&Sample) -> T) -> Vec<T> {
        self.samples.iter().map(read).collect()
    }
}

/// Seconds from a time to a later one; 0 if the clock was set back.
pub(super) fn seconds_between(from: UnixMillis, to: UnixMillis) -> f64 {
    let millis = to.as_millis().saturating_sub(from.as_millis()).max(0);
    Duration::from_millis(millis.unsigned_abs()).as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "metrics are doubles")]
fn per_second(count: u64, seconds: f64) -> f64 {
    rounded(count as f64 / seconds.max(0.001), 1e3)
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::histogram::Histogram;
    use serde_json::json;

    use super::*;

    fn appended() -> UnixMillis {
        UnixMillis::new(1_700_000_000_000).unwrap()
    }

    /// A reading `seconds` after `began` in which everything that is counted has this count.
    fn reading(began: Instant, seconds: u64, count: u64, commit: &Histogram) -> Reading {
        Reading {
            at: began + Duration::from_secs(seconds),
            time: UnixMillis::new(1_700_000_000_000 + seconds * 1000).unwrap(),
            answered: BTreeMap::from([("accepted", count), ("refused", 0)]),
            answer: Buckets::default(),
            commit: Buckets::of(commit),
            spool_used_bytes: count,
            lags: vec![count, 0],
            confirmed: vec![0, count],
            oldest: vec![
                Some(OldestUnconfirmed {
                    appended: appended(),
                    cursor: Seq(7),
                }),
                None,
            ],
        }
    }

    #[test]
    fn a_sample_has_the_rates_since_the_reading_before() {
        let (began, commit) = (Instant::now(), Histogram::new([1.0]));
        let mut ring = Ring::default();
        ring.add(reading(began, 0, 7, &commit));
        assert_eq!(ring.samples.len(), 0);
        commit.observe(0.5);
        ring.add(reading(began, 5, 107, &commit));
        ring.add(reading(began, 15, 107, &commit));
        assert_eq!(
            serde_json::to_value(ring.body(&["kafka", "rabbitmq"])).unwrap(),
            json!({
                "every_seconds": 5,
                "samples": 2,
                "newest_at": "2023-11-14T22:13:35.000Z",
                "callbacks_per_second": { "accepted": [20.0, 0.0] },
                "answer_p50_seconds": [null, null],
                "answer_p99_seconds": [null, null],
                "commit_p50_seconds": [0.5, null],
                "commit_p99_seconds": [0.99, null],
                "spool_used_bytes": [107, 107],
                "unconfirmed_events": [107, 107],
                "sinks": {
                    "kafka": {
                        "lag": [107, 107],
                        "oldest_unconfirmed_seconds": [5.0, 15.0],
                        "confirmed_per_second": [0.0, 0.0],
                    },
                    "rabbitmq": {
                        "lag": [0, 0],
                        "oldest_unconfirmed_seconds": [0.0, 0.0],
                        "confirmed_per_second": [20.0, 0.0],
                    },
                },
            })
        );
    }

    #[test]
    fn the_oldest_event_is_known_until_the_cursor_has_moved_past_it() {
        let mut ring = Ring::default();
        assert_eq!(ring.oldest(0, Seq(7)), None, "there is no sample");
        ring.add(reading(Instant::now(), 0, 9, &Histogram::new([1.0])));
        assert_eq!(ring.oldest(0, Seq(7)), Some(appended()));
        assert_eq!(ring.oldest(0, Seq(8)), None, "it was confirmed");
        assert_eq!(ring.oldest(1, Seq(7)), None, "nothing waited");
    }

    #[test]
    fn samples_of_fifteen_minutes_are_kept() {
        let (began, commit) = (Instant::now(), Histogram::new([1.0]));
        let mut ring = Ring::default();
        for number in 0..1000 {
            ring.add(reading(began, number * 5, number, &commit));
        }
        let body = ring.body(&["kafka", "rabbitmq"]);
        assert_eq!(body.samples, 180);
        assert_eq!(body.spool_used_bytes[0], 820);
        assert_eq!(body.spool_used_bytes[179], 999);
        assert_eq!(body.callbacks_per_second["accepted"].len(), 180);
    }
}
