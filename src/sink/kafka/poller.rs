//! The thread that polls a producer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer as _};

use super::reports::Reports;
use super::topics::{self, PartitionCounts};

/// How long one poll waits; what ends the thread is looked at in between.
const POLL: Duration = Duration::from_millis(100);

/// How often a cluster that could not be reached is asked whether it is back.
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the topics are asked whether they have got more partitions: as often as librdkafka would.
const COUNT_EVERY: Duration = Duration::from_mins(5);

pub(super) struct Poller {
    pub producer: Arc<BaseProducer<Reports>>,
    pub topic: String,
    pub dead_letter_topic: String,
    /// Known once the topics are.
    pub partitions: Arc<OnceLock<PartitionCounts>>,
    pub over: Arc<AtomicBool>,
}

impl Poller {
    /// Polls until it is over.
    pub(super) fn run(&self) {
        let mut probe_due = Instant::now();
        let mut count_due = Instant::now() + COUNT_EVERY;
        while !self.over.load(Ordering::Acquire) {
            self.producer.poll(POLL);
            let reports = self.producer.context();
            reports.tick();
            let now = Instant::now();
            if reports.is_stalled() && probe_due <= now {
                if self.metadata(&self.topic).is_some() {
                    // Errors from before the answer may still wait in the queue: they are no news.
                    self.producer.poll(POLL);
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

    /// Says so where a topic has not as many partitions as the session counts with: another session will.
    fn partitions_added(&self) -> Option<String> {
        let counted = self.partitions.get()?;
        [
            (&self.topic, counted.events),
            (&self.dead_letter_topic, counted.dead_letters),
        ]
        .into_iter()
        .find_map(|(topic, before)| {
            let now = topics::partitions(&self.metadata(topic)?, topic).ok()?;
            (now != before).then(|| format!("topic {topic} has {now} partitions, not {before}"))
        })
    }
}
