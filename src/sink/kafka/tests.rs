//! A session against librdkafka's own mock brokers, which fail requests on demand. Like a real broker that does not
//! know the producer yet, they accept any sequence number.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Config, Kafka, KafkaSession};
use crate::event::{Seq, tests::event};
use crate::sink::{Delivery, Progress, Session as _, SessionError, Sink as _, Window};
use crate::telemetry::chain;

const TOPIC: &str = "events";
const TIMEOUT: Duration = Duration::from_secs(20);

struct Brokers(MockCluster<'static, DefaultProducerContext>);

impl Brokers {
    fn start(partitions: i32) -> Self {
        let cluster = MockCluster::new(1).unwrap();
        for topic in [TOPIC, "dead"] {
            cluster.create_topic(topic, partitions, 1).unwrap();
        }
        // Long enough for several requests to be in flight.
        cluster
            .broker_round_trip_time(1, Duration::from_millis(100))
            .unwrap();
        Self(cluster)
    }

    /// Makes the next produce request fail with this error and append nothing.
    fn fail_once(&self, error: RDKafkaRespErr) {
        self.0.request_errors(RDKafkaApiKey::Produce, &[error]);
    }

    /// A sink that sends each record as its own batch, so that several batches are in flight.
    fn sink(&self) -> Kafka {
        self.sink_with(false)
    }

    fn sink_with(&self, exactly_once: bool) -> Kafka {
        let config = Config {
            exactly_once,
            bootstrap_servers: self.0.bootstrap_servers(),
            topic: TOPIC.to_owned(),
            dead_letter_topic: "dead".to_owned(),
            create_topics: false,
            properties: [("batch.num.messages".to_owned(), "1".to_owned())].into(),
            ..Config::default()
        };
        Kafka::new(tokio::sync::watch::channel(config).1, Uuid::nil(), false)
    }

    /// The ids in a partition, as a subscriber sees them.
    fn read(&self, partition: i32) -> Vec<u128> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.0.bootstrap_servers())
            .set("group.id", "test")
            .create()
            .unwrap();
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(TOPIC, partition, Offset::Beginning)
            .unwrap();
        consumer.assign(&assignment).unwrap();
        let (_, end) = consumer
            .fetch_watermarks(TOPIC, partition, TIMEOUT)
            .unwrap();
        (0..end)
            .map(|_| {
                let message = consumer.poll(TIMEOUT).expect("no record").unwrap();
                let event: serde_json::Value =
                    serde_json::from_slice(message.payload().unwrap()).unwrap();
                event["id"]
                    .as_str()
                    .unwrap()
                    .parse::<Uuid>()
                    .unwrap()
                    .as_u128()
            })
            .collect()
    }
}

/// A window with these events in flight, all of one conversation.
fn window(numbers: std::ops::RangeInclusive<u64>) -> Window {
    let mut window = Window::default();
    for number in numbers {
        let body = serde_json::json!({"id": Uuid::from_u128(number.into())});
        window.admit(Delivery {
            seq: Seq(number),
            event: Arc::new(event(number.into(), body.to_string())),
            refusal: None,
            is_resent: false,
        });
    }
    window
}

/// Publishes the events in a new session. Returns the confirmed numbers in the order of the reports, and the error if
/// the session ended before all were confirmed.
async fn publish(sink: &mut Kafka, window: Window) -> (Vec<u64>, Option<SessionError>) {
    publish_in_session(sink.connect().await.unwrap(), window).await
}

async fn publish_in_session(
    mut session: KafkaSession,
    window: Window,
) -> (Vec<u64>, Option<SessionError>) {
    let seqs: Vec<Seq> = window.in_flight().map(|delivery| delivery.seq).collect();
    session.publish(&window, &seqs);
    let mut missing = seqs;
    let (mut confirmed, mut end) = (Vec::new(), None);
    while end.is_none() && !missing.is_empty() {
        match timeout(TIMEOUT, session.progress(&window))
            .await
            .expect("timed out waiting for progress")
        {
            Ok(Progress::Confirmed(seqs)) => {
                missing.retain(|seq| !seqs.contains(seq));
                confirmed.extend(seqs.iter().map(|seq| seq.0));
            }
            Ok(_) => {}
            Err(error) => end = Some(error),
        }
    }
    session.close().await;
    (confirmed, end)
}

#[tokio::test]
async fn a_retried_first_batch_keeps_all_records_in_order() {
    for error in [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
    ] {
        let brokers = Brokers::start(1);
        brokers.fail_once(error);
        let (confirmed, end) = publish(&mut brokers.sink(), window(1..=20)).await;
        let found = brokers.read(0);
        let all: Vec<u128> = (1..=20).collect();
        assert_eq!(found, all, "{error:?}; confirmed: {confirmed:?}; {end:?}");
    }
}

#[tokio::test]
async fn no_record_overtakes_a_refused_first_record() {
    let brokers = Brokers::start(1);
    brokers.fail_once(RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE);
    let (confirmed, end) = publish(&mut brokers.sink(), window(1..=20)).await;
    assert!(matches!(end, Some(SessionError::Refused(_))), "{end:?}");
    assert!(confirmed.is_empty(), "{confirmed:?}");
    assert_eq!(brokers.read(0), [0_u128; 0]);
}

/// Errors in sending a transaction's records.
const RECORD_ERRORS: [(RDKafkaApiKey, RDKafkaRespErr); 2] = [
    (
        RDKafkaApiKey::Produce,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_REQUIRED_ACKS,
    ),
    (
        RDKafkaApiKey::AddPartitionsToTxn,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
    ),
];

/// Errors in committing its offset, after all records have arrived.
const OFFSET_ERRORS: [(RDKafkaApiKey, RDKafkaRespErr); 2] = [
    (
        RDKafkaApiKey::AddOffsetsToTxn,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
    ),
    (
        RDKafkaApiKey::TxnOffsetCommit,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
    ),
];

/// Publishes in a session in which this many requests of one kind fail.
async fn publish_while_failing(
    (request, error): (RDKafkaApiKey, RDKafkaRespErr),
    times: usize,
) -> (Vec<u64>, Option<SessionError>) {
    let brokers = Brokers::start(1);
    let mut sink = brokers.sink_with(true);
    let session = sink.connect().await.unwrap();
    brokers.0.request_errors(request, &vec![error; times]);
    publish_in_session(session, window(1..=20)).await
}

#[tokio::test]
async fn a_failed_offset_commit_is_aborted_and_retried() {
    for failing in OFFSET_ERRORS {
        let (confirmed, end) = publish_while_failing(failing, 1).await;
        let all: Vec<u64> = (1..=20).collect();
        assert_eq!(confirmed, all, "{failing:?}: {end:?}");
        assert!(end.is_none(), "{failing:?}: {end:?}");
    }
}

#[tokio::test]
async fn a_transaction_that_keeps_failing_ends_the_session() {
    let all = OFFSET_ERRORS.map(|failing| (failing, 100));
    for (failing, times) in all.into_iter().chain(RECORD_ERRORS.map(|it| (it, 1))) {
        let (confirmed, end) = publish_while_failing(failing, times).await;
        assert!(confirmed.is_empty(), "{failing:?}: {confirmed:?}");
        assert!(
            matches!(end, Some(SessionError::Unavailable(..))),
            "{failing:?}: {end:?}"
        );
    }
}

/// The error names the reason, not only that librdkafka has purged the records.
#[tokio::test]
async fn authorization_failure_is_named_in_the_error() {
    let (_, end) = publish_while_failing(RECORD_ERRORS[1], 1).await;
    let reason = chain(&end.expect("the session did not end"));
    assert!(
        reason.contains("lacks the right Write on topic"),
        "{reason}"
    );
    assert!(reason.contains("authorization failed"), "{reason}");
}

/// An abort also fails if the cluster goes away in the meantime.
#[tokio::test]
async fn a_failed_abort_ends_the_session() {
    let brokers = Brokers::start(1);
    let mut sink = brokers.sink_with(true);
    let session = sink.connect().await.unwrap();
    let (request, error) = OFFSET_ERRORS[0];
    brokers.0.request_errors(request, &[error]);
    let fenced = RDKafkaRespErr::RD_KAFKA_RESP_ERR_PRODUCER_FENCED;
    brokers
        .0
        .request_errors(RDKafkaApiKey::EndTxn, &[fenced; 100]);
    let (confirmed, end) = publish_in_session(session, window(1..=20)).await;
    assert!(confirmed.is_empty(), "{confirmed:?}");
    let reason = end.expect("the session did not end").to_string();
    assert!(reason.contains("could not abort"), "{reason}");
}

#[tokio::test]
async fn a_fenced_transaction_ends_the_session() {
    let fenced = RDKafkaRespErr::RD_KAFKA_RESP_ERR_PRODUCER_FENCED;
    let (confirmed, end) = publish_while_failing((RDKafkaApiKey::EndTxn, fenced), 1).await;
    assert!(confirmed.is_empty(), "{confirmed:?}");
    assert!(
        matches!(end, Some(SessionError::Unavailable(..))),
        "{end:?}"
    );
}
