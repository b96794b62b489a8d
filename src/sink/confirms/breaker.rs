//! Decides whether answers wait for the events of a partition.

use std::time::Duration;

use tokio::time::Instant;

use crate::event::Seq;

/// How many deadlines in a row must be missed until no answer waits.
const MISSES: u32 = 3;

/// If a partition had no event for this long, the next answer waits again: that delays no other answer, and the broker
/// may have recovered.
const QUIET: Duration = Duration::from_secs(60);

/// Opens after missed deadlines, and closes at a confirm that comes in time. While it is open, one event at a time is
/// its probe: a broker that confirms late, or works off a backlog, must not close it.
#[derive(Debug, Default)]
pub(super) struct ConfirmBreaker {
    /// In a row.
    misses: u32,
    /// When an event of the partition was on disk last.
    asked: Option<Instant>,
    probe: Option<(Seq, Instant)>,
}

/// What to do with an event that is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Its answer waits for the confirm.
    Answer,
    /// Nobody waits, but the time until the confirm is measured. The previous probe, if there is one, was not confirmed
    /// in time.
    Probe(Option<Seq>),
    /// Nobody waits, and another event is the probe.
    Nobody,
}

impl ConfirmBreaker {
    pub(super) fn is_open(&self, now: Instant) -> bool {
        let is_quiet = |asked| now.saturating_duration_since(asked) >= QUIET;
        self.misses >= MISSES && !self.asked.is_some_and(is_quiet)
    }

    /// Asks about an event. A confirm is in time within `deadline`.
    pub(super) fn ask(&mut self, seq: Seq, deadline: Duration, now: Instant) -> Wait {
        let is_open = self.is_open(now);
        self.asked = Some(now);
        if !is_open {
            // After a quiet time, one more miss opens it again.
            self.misses = self.misses.min(MISSES - 1);
            return Wait::Answer;
        }
        // It may never be confirmed, for example because no queue takes it.
        let is_late = |(_, since): (Seq, Instant)| now.saturating_duration_since(since) > deadline;
        if self.probe.is_some_and(|probe| !is_late(probe)) {
            return Wait::Nobody;
        }
        let late = self.probe.replace((seq, now));
        Wait::Probe(late.map(|(late, _)| late))
    }

    /// An answer has waited until its deadline.
    pub(super) const fn missed(&mut self) {
        self.misses = self.misses.saturating_add(1);
    }

    /// An event that was asked for is confirmed, or never will be.
    pub(super) fn ended(&mut self, seq: Seq, is_in_time: bool) {
        if is_in_time {
            self.misses = 0;
            self.probe = None;
        } else {
            self.probe.take_if(|(probe, _)| *probe == seq);
        }
    }

    pub(super) fn is_probe(&self, seq: Seq) -> bool {
        self.probe.is_some_and(|(probe, _)| probe == seq)
    }
}
