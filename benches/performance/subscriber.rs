//! A subscriber of a Kafka topic that notes when it sees what: committed records only, as soon as they are.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use serde::Deserialize;

use super::rig::Kafka;

/// Between two looks whether it is over.
const PAUSE: Duration = Duration::from_millis(20);

/// Numbers of recalls, and when each was seen.
pub type Seen = HashMap<u64, Instant>;

pub struct Subscriber {
    over: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    reading: JoinHandle<Seen>,
}

/// What it reads of an event.
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
    /// Reads the whole topic from now on.
    pub fn start(kafka: &Kafka, topic: &str, partitions: i32) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", kafka.bootstrap_servers())
            .set("group.id", "bench")
            .set("isolation.level", "read_committed")
            .create()
            .expect("a consumer");
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            let added = assignment.add_partition_offset(topic, partition, Offset::Beginning);
            added.expect("an offset");
        }
        consumer.assign(&assignment).expect("an assignment");
        let (over, count) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (is_over, counted) = (Arc::clone(&over), Arc::clone(&count));
        let reading = thread::spawn(move || {
            let mut seen = Seen::new();
            while !is_over.load(Ordering::Acquire) {
                let Some(message) = consumer.poll(PAUSE) else {
                    continue;
                };
                let now = Instant::now();
                let message = message.expect("a record");
                let event: Event =
                    serde_json::from_slice(message.payload().expect("an event")).expect("JSON");
                seen.insert(event.data.messages[0].seq, now);
                counted.store(seen.len(), Ordering::Release);
            }
            seen
        });
        Self {
            over,
            count,
            reading,
        }
    }

    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub fn stop(self) -> Seen {
        self.over.store(true, Ordering::Release);
        self.reading.join().expect("the subscriber")
    }
}
