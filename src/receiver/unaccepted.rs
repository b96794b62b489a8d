//! Reports recalls that were not accepted. The vendor does not send a recall again, so each of them is a loss.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::{error, warn};

use super::answer::Outcome;

/// At most one log line for each cause in this time.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// How far back [`UnacceptedRecalls::last_minute`] counts.
const MINUTE: Duration = Duration::from_mins(1);

/// If no recall was accepted for this long, probably none is: each line is an ERROR.
const NONE_ACCEPTED: Duration = Duration::from_mins(10);

/// The recalls that were not accepted, by outcome.
#[derive(Debug, Default)]
pub struct UnacceptedRecalls(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last_accepted: Option<Instant>,
    causes: BTreeMap<Cause, Unaccepted>,
}

/// An outcome and its advice: one outcome can have several causes.
type Cause = (&'static str, &'static str);

/// The recalls that were not accepted for one cause.
#[derive(Debug)]
struct Unaccepted {
    /// Whether the cause is the relay's own, so that each line is an ERROR.
    is_own_failure: bool,
    /// Why the latest recall was not accepted.
    reason: String,
    /// How many arrived in each second of the last minute.
    recent: VecDeque<(Instant, u64)>,
    logged_at: Option<Instant>,
    /// How many are not in the log yet.
    unlogged: u64,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    is_error: bool,
    outcome: &'static str,
    recalls: u64,
    reason: String,
    advice: &'static str,
}

impl UnacceptedRecalls {
    /// A recall was accepted.
    pub(super) fn accepted(&self, now: Instant) {
        self.state().last_accepted = Some(now);
    }

    /// A recall got another answer than OK, and was not stored either.
    pub(super) fn add(&self, outcome: &Outcome, now: Instant) {
        let line = self.state().add(outcome, now);
        line.into_iter().for_each(Line::log);
    }

    /// Logs what has been counted since the last line of each cause, if that was long enough ago or this is the end.
    pub fn log(&self, is_end: bool) {
        let lines = self.state().lines(Instant::now(), is_end);
        lines.into_iter().for_each(Line::log);
    }

    /// Logs what is due, for as long as the relay runs.
    pub async fn watch(&self) -> Infallible {
        loop {
            sleep(LOG_INTERVAL / 6).await;
            self.log(false);
        }
    }

    /// How many recalls were not accepted within the last minute, by outcome.
    #[must_use]
    pub fn last_minute(&self) -> BTreeMap<&'static str, u64> {
        self.state().last_minute(Instant::now())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, outcome: &Outcome, now: Instant) -> Option<Line> {
        let cause = (outcome.name(), outcome.advice());
        let (_, reason) = outcome.failure().filter(|_| outcome.is_loss())?;
        let unaccepted = self.causes.entry(cause).or_insert_with(|| Unaccepted {
            is_own_failure: outcome.is_own_failure(),
            reason: String::new(),
            recent: VecDeque::new(),
            logged_at: None,
            unlogged: 0,
        });
        unaccepted.reason = reason;
        unaccepted.unlogged += 1;
        match unaccepted.recent.back_mut() {
            Some((second, count)) if now.duration_since(*second) < Duration::from_secs(1) => {
                *count += 1;
            }
            _ => unaccepted.recent.push_back((now, 1)),
        }
        unaccepted.forget(now);
        self.line(cause, now, false)
    }

    fn lines(&mut self, now: Instant, is_end: bool) -> Vec<Line> {
        let causes: Vec<Cause> = self.causes.keys().copied().collect();
        let lines = causes.into_iter();
        lines
            .filter_map(|cause| self.line(cause, now, is_end))
            .collect()
    }

    /// The line that is due for a cause.
    fn line(&mut self, cause: Cause, now: Instant, is_end: bool) -> Option<Line> {
        let none_accepted = self
            .last_accepted
            .is_none_or(|accepted| now.duration_since(accepted) >= NONE_ACCEPTED);
        let unaccepted = self.causes.get_mut(&cause)?;
        let is_due = unaccepted
            .logged_at
            .is_none_or(|logged| now.duration_since(logged) >= LOG_INTERVAL);
        if unaccepted.unlogged == 0 || !(is_due || is_end) {
            return None;
        }
        unaccepted.logged_at = Some(now);
        Some(Line {
            is_error: none_accepted || unaccepted.is_own_failure,
            outcome: cause.0,
            recalls: std::mem::take(&mut unaccepted.unlogged),
            reason: unaccepted.reason.clone(),
            advice: cause.1,
        })
    }

    fn last_minute(&mut self, now: Instant) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for ((outcome, _), unaccepted) in &mut self.causes {
            unaccepted.forget(now);
            let count: u64 = unaccepted.recent.iter().map(|(_, count)| count).sum();
            if count > 0 {
                *counts.entry(*outcome).or_default() += count;
            }
        }
        counts
    }
}

impl Unaccepted {
    /// Removes what is older than a minute.
    fn forget(&mut self, now: Instant) {
        while let Some((second, _)) = self.recent.front()
            && now.duration_since(*second) >= MINUTE
        {
            self.recent.pop_front();
        }
    }
}

impl Line {
    fn log(self) {
        let Self {
            is_error,
            outcome,
            recalls,
            reason,
            advice,
        } = self;
        if is_error {
            error!(
                code = "recalls_not_accepted",
                outcome,
                recalls,
                reason,
                "recalls were not accepted, and the vendor does not send them again; {advice}"
            );
        } else {
            warn!(
                code = "recalls_not_accepted",
                outcome,
                recalls,
                reason,
                "recalls were not accepted, and the vendor does not send them again; {advice}"
            );
        }
    }
}

#[cfg(test)]
mod tests;
