//! A Kafka subscriber that records when it sees each event. It reads only committed records.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use serde::Deserialize;

use super::rig::Kafka;

/// The timeout of a poll; the stop flag is checked in between.
const POLL_TIMEOUT: Duration = Duration::from_millis(20);

/// When the subscriber saw each event, by the number of the recall.
pub type Seen = HashMap<u64, Instant>;

pub struct Subscriber {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    reading: JoinHandle<Seen>,
}

/// The part of an event that it reads.
#[derive(Deserialize)]
struct Event {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    messages: Vec<Recalled>,
}

#[derive(Deserialize)]
struct Recalled {
    seq: u64,
}

impl Subscriber {
    /// Starts to read the topic from its beginning.
    pub fn start(kafka: &Kafka, topic: &str, partitions: i32) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", kafka.bootstrap_servers())
            .set("group.id", "bench")
            .set("isolation.level", "read_committed")
            .create()
            .expect("cannot create a consumer");
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            let added = assignment.add_partition_offset(topic, partition, Offset::Beginning);
            added.expect("cannot set an offset");
        }
        consumer
            .assign(&assignment)
            .expect("cannot assign the partitions");
        let (stop, count) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stop_flag, seen_count) = (Arc::clone(&stop), Arc::clone(&count));
        let reading = thread::spawn(move || {
            let mut seen = Seen::new();
            while !stop_flag.load(Ordering::Acquire) {
                let Some(message) = consumer.poll(POLL_TIMEOUT) else {
                    continue;
                };
                let now = Instant::now();
                let message = message.expect("cannot read a record");
                let event: Event =
                    serde_json::from_slice(message.payload().expect("a record has no payload"))
                        .expect("an event is not valid JSON");
                seen.insert(event.data.messages[0].seq, now);
                seen_count.store(seen.len(), Ordering::Release);
            }
            seen
        });
        Self {
            stop,
            count,
            reading,
        }
    }

    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Release);
        self.reading.join().expect("the subscriber panicked")
    }
}
