//! The throughput of librdkafka alone: a `BaseProducer` with the relay's properties and messages, from memory to the
//! same broker.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};
use recall_relay::event::{CONTENT_TYPE, Event};

use super::backlog::event;
use super::rig::Kafka;

/// Records sent between two polls for delivery reports.
const RECORDS_PER_POLL: usize = 1000;

/// The timeout for the last delivery reports.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The relay's producer properties.
const PROPERTIES: [(&str, &str); 9] = [
    ("allow.auto.create.topics", "false"),
    ("queue.buffering.max.kbytes", "32768"),
    ("queue.buffering.max.messages", "20000"),
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("message.timeout.ms", "0"),
    ("enable.gapless.guarantee", "true"),
    ("partitioner", "murmur2_random"),
    ("queuing.strategy", "fifo"),
];

#[derive(Default)]
struct Reports {
    confirmed: AtomicU64,
    first: OnceLock<Instant>,
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, report: &DeliveryResult<'_>, _: usize) {
        assert!(report.is_ok(), "Kafka refused a record");
        self.first.get_or_init(Instant::now);
        self.confirmed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Publishes `events` events of a backlog; returns the confirms per second after the first one.
pub fn publish(kafka: &Kafka, topic: &str, events: u64) -> f64 {
    let events: Vec<Event> = (0..events).map(event).collect();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.bootstrap_servers());
    for (name, value) in PROPERTIES {
        config.set(name, value);
    }
    let producer = BaseProducer::from_config_and_context(&config, Reports::default());
    let producer: BaseProducer<Reports> = producer.expect("cannot create a producer");
    for (number, event) in events.iter().enumerate() {
        if number % RECORDS_PER_POLL == 0 {
            producer.poll(Duration::ZERO);
        }
        let mut record = BaseRecord::with_opaque_to(topic, number)
            .key(&*event.conversation)
            .payload(&event.body[..])
            .headers(headers());
        while let Err((error, unsent)) = producer.send(record) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            assert_eq!(error, full, "a record cannot be queued");
            record = unsent;
            producer.poll(Duration::from_millis(10));
        }
    }
    producer
        .flush(TIMEOUT)
        .expect("not all records were confirmed in time");
    let (reports, end) = (producer.context(), Instant::now());
    let confirmed = reports.confirmed.load(Ordering::Relaxed);
    assert_eq!(confirmed, events.len() as u64, "confirmed records");
    let first = reports.first.get().expect("no record was confirmed");
    (confirmed - 1) as f64 / (end - *first).as_secs_f64()
}

fn headers() -> OwnedHeaders {
    OwnedHeaders::new_with_capacity(1).insert(Header {
        key: "content-type",
        value: Some(CONTENT_TYPE),
    })
}
