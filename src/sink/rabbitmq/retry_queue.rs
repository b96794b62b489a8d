//! Decides which of the messages that were nacked or returned are published again, and when.
//!
//! RabbitMQ puts a message into every bound queue that accepts it, and nacks it if one of them does not. So each retry
//! may add a copy to the queues that do accept it. Publishing every rejected message again and again would fill them.
//! Instead, one message is published again, and the others wait until it is confirmed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::time::Duration;

use tokio::time::Instant;

use crate::event::Seq;

/// The pause before the first retry.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The pause doubles up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The messages that were nacked or returned: rejected, but only for now.
///
/// Messages with the same routing key are routed to the same queues: if one of them is accepted, others may be, too.
#[derive(Debug, Default)]
pub(super) struct RetryQueue {
    /// By routing key; none of them is empty.
    routes: BTreeMap<String, Route>,
}

/// The rejected messages with one routing key.
#[derive(Debug)]
struct Route {
    /// Why the latest of them was rejected.
    reason: String,
    /// When the first of them was rejected; since then there has always been one.
    since: Instant,
    /// Those to publish again. One that is rejected again goes to the end, so that it does not keep the others waiting.
    waiting: VecDeque<Seq>,
    /// Those that are being published again. The next ones follow when each of these has an outcome.
    retrying: BTreeSet<Seq>,
    /// Whether one of these was rejected again.
    rejected_again: bool,
    /// The number of messages that are being published again; otherwise the maximum of the next retry.
    size: usize,
    /// When the next retry is due.
    due: Instant,
    /// The pause after a retry that is rejected.
    pause: Duration,
}

impl RetryQueue {
    /// Adds a message that was published and rejected, for the first time or again.
    pub(super) fn push(&mut self, seq: Seq, routing_key: &str, reason: String, now: Instant) {
        let route = self
            .routes
            .entry(routing_key.to_owned())
            .or_insert_with(|| Route::new(now));
        route.reason = reason;
        route.waiting.push_back(seq);
        if route.retrying.remove(&seq) {
            route.rejected_again = true;
            route.end_retry(now);
        }
    }

    /// Removes a message that is confirmed, or that becomes a dead letter. Does nothing for messages
    /// that were never rejected.
    pub(super) fn complete(&mut self, seq: Seq, now: Instant) {
        self.routes.retain(|_, route| {
            if route.retrying.remove(&seq) {
                route.end_retry(now);
            }
            !route.waiting.is_empty() || !route.retrying.is_empty()
        });
    }

    /// When the next retry is due; none while nothing waits for one.
    pub(super) fn due(&self) -> Option<Instant> {
        self.routes.values().filter_map(Route::due).min()
    }

    /// Takes the messages to publish again now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Seq> {
        let mut taken = Vec::new();
        for route in self.routes.values_mut() {
            if route.due().is_some_and(|due| due <= now) {
                route.size = route.size.min(route.waiting.len());
                let retry: Vec<Seq> = route.waiting.drain(..route.size).collect();
                route.retrying.extend(&retry);
                taken.extend(retry);
            }
        }
        taken
    }

    /// Why messages are rejected; none if none is. If the reasons differ, it is that of the routing key that has been
    /// rejected for the longest time, so that the reported reason does not change with each message.
    pub(super) fn reason(&self) -> Option<&str> {
        let oldest = self.routes.values().min_by_key(|route| route.since)?;
        Some(&oldest.reason)
    }
}

impl Route {
    fn new(now: Instant) -> Self {
        Self {
            reason: String::new(),
            since: now,
            waiting: VecDeque::new(),
            retrying: BTreeSet::new(),
            rejected_again: false,
            size: 1,
            due: now + FIRST_PAUSE,
            pause: 2 * FIRST_PAUSE,
        }
    }

    fn due(&self) -> Option<Instant> {
        (self.retrying.is_empty() && !self.waiting.is_empty()).then_some(self.due)
    }

    /// Plans the next retry if every message of this one has an outcome.
    ///
    /// A full queue may have capacity for a few messages only. So not all messages follow the first one at once, but
    /// twice as many each time: then at most two are rejected again for each one that is confirmed.
    fn end_retry(&mut self, now: Instant) {
        if !self.retrying.is_empty() {
            return;
        }
        if mem::take(&mut self.rejected_again) {
            self.size = 1;
            self.due = now + self.pause;
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        } else {
            self.size *= 2;
            self.due = now;
            self.pause = FIRST_PAUSE;
        }
    }
}

#[cfg(test)]
mod tests;
