//! The thread that polls a producer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer as _};

use super::reports::Reports;
use super::topics::{self, PartitionCounts};

/// Timeout of one poll. The stop flag is checked between polls.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// How often to check whether an unreachable cluster is back.
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often to check whether partitions were added: as often as librdkafka would.
const COUNT_EVERY: Duration = Duration::from_mins(5);

pub(super) struct Poller {
    pub producer: Arc<BaseProducer<Reports>>,
    pub topic: String,
    pub dead_letter_topic: String,
    /// Set when the topics have been looked up.
    pub partitions: Arc<OnceLock<PartitionCounts>>,
    pub stopped: Arc<AtomicBool>,
}

impl Poller {
    /// Polls until stopped.
    pub(super) fn run(&self) {
        let mut probe_due = Instant::now();
        let mut count_due = Instant::now() + COUNT_EVERY;
        while !self.stopped.load(Ordering::Acquire) {
            self.producer.poll(POLL_TIMEOUT);
            let reports = self.producer.context();
            reports.tick();
            let now = Instant::now();
            // While records are in flight, only a confirm shows that their partitions' leaders can be reached: another
            // broker may answer the probe. For the same reason an answer does not disprove a cause: if a leader's name
            // does not resolve, the bootstrap server answers, and an idle sink would be up and down every few seconds.
            // The price is that an idle sink is down for up to a minute after the cause was repaired.
            if reports.is_stalled_without_cause()
                && probe_due <= now
                && self.producer.in_flight_count() == 0
            {
                if self.metadata(&self.topic).is_some() {
                    // Handle errors from before the answer first: they may still be in the queue, and are out of date.
                    self.producer.poll(POLL_TIMEOUT);
                    reports.flowing();
                }
                probe_due = Instant::now() + PROBE_EVERY;
            } else if count_due <= now {
                if let Some(reason) = self.partitions_added() {
                    reports.fatal(reason);
                }
                count_due = Instant::now() + COUNT_EVERY;
            }
        }
    }

    fn metadata(&self, topic: &str) -> Option<Metadata> {
        let client = self.producer.client();
        client.fetch_metadata(Some(topic), PROBE_TIMEOUT).ok()
    }

    /// A reason to end the session if a topic's partition count has changed; the next session uses the new count.
    fn partitions_added(&self) -> Option<String> {
        let counted = self.partitions.get()?;
        [
            (&self.topic, counted.events),
            (&self.dead_letter_topic, counted.dead_letters),
        ]
        .into_iter()
        .find_map(|(topic, before)| {
            let now = topics::partitions(&self.metadata(topic)?, topic).ok()?;
            (now != before).then(|| {
                format!("topic {topic} now has {now} partitions instead of {before}; reconnecting")
            })
        })
    }
}
