//! Checks that the cluster is reachable, ensures that the topics exist, and counts their partitions.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfig as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::producer::{BaseProducer, Producer as _};
use serde::Deserializer;
use serde::de::Error as _;
use tokio::time::{Instant, sleep};
use tracing::info;

use super::errors::stopping;
use super::reports::Reports;
use super::rights::TopicRight;
use super::{Config, REQUEST_TIMEOUT};
use crate::setting;
use crate::sink::SessionError;

/// How long a newly created topic may take to appear, and how often to check.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// How many partitions the topics have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PartitionCounts {
    pub events: i32,
    pub dead_letters: i32,
}

/// Reads the name of a topic: what Kafka accepts as one.
pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name: String = setting::text(deserializer)?;
    let legal = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-');
    if name.len() > 249 || matches!(name.as_str(), "." | "..") || !name.chars().all(legal) {
        let problem = "must be the name of a topic: up to 249 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`";
        return Err(D::Error::custom(problem));
    }
    Ok(name)
}

/// Looks up both topics, and creates missing ones if configured.
pub(super) async fn ensure(
    config: &Config,
    producer: &Arc<BaseProducer<Reports>>,
) -> Result<PartitionCounts, SessionError> {
    Ok(PartitionCounts {
        events: ensure_one(config, producer, &config.topic).await?,
        dead_letters: ensure_one(config, producer, &config.dead_letter_topic).await?,
    })
}

async fn ensure_one(
    config: &Config,
    producer: &Arc<BaseProducer<Reports>>,
    topic: &str,
) -> Result<i32, SessionError> {
    let mut created: Option<Instant> = None;
    loop {
        let code = match look_up(producer, topic).await? {
            Ok(partitions) => return Ok(partitions),
            Err(code) => code,
        };
        let missing = matches!(
            code,
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic
        );
        match created {
            None if missing && config.create_topics => {
                create(config, producer, topic).await?;
                created = Some(Instant::now());
            }
            Some(at) if at.elapsed() < APPEARS_WITHIN => sleep(CHECK_EVERY).await,
            _ => {
                let advice = if missing && !config.create_topics {
                    "; create it, or set kafka.create_topics to true"
                } else {
                    ""
                };
                let reason = format!("cannot use topic {topic}: {code}{advice}");
                let right = TopicRight::Describe;
                let rights = &producer.context().rights;
                let reason = rights.explain(code, right, topic, reason);
                return Err(SessionError::Unavailable(reason, None));
            }
        }
    }
}

/// A topic's partition count, or its error.
async fn look_up(
    producer: &Arc<BaseProducer<Reports>>,
    topic: &str,
) -> Result<Result<i32, RDKafkaErrorCode>, SessionError> {
    let (client, name) = (Arc::clone(producer), topic.to_owned());
    let metadata = tokio::task::spawn_blocking(move || {
        client.client().fetch_metadata(Some(&name), REQUEST_TIMEOUT)
    })
    .await
    .map_err(stopping)?
    .map_err(|error| {
        let action = "could not reach the cluster".to_owned();
        let reports = producer.context();
        reports.request_failed(action, TopicRight::Describe, topic, error)
    })?;
    Ok(partitions(&metadata, topic))
}

/// A topic's partition count according to `metadata`.
pub(super) fn partitions(metadata: &Metadata, topic: &str) -> Result<i32, RDKafkaErrorCode> {
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let found = found.ok_or(RDKafkaErrorCode::UnknownTopic)?;
    match (found.error(), i32::try_from(found.partitions().len())) {
        (Some(error), _) => Err(error.into()),
        (None, Ok(count @ 1..)) => Ok(count),
        (None, _) => Err(RDKafkaErrorCode::UnknownPartition),
    }
}

/// The limits of an administrative request.
pub(super) fn admin_options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(REQUEST_TIMEOUT))
        .operation_timeout(Some(REQUEST_TIMEOUT))
}

/// How many replicas the partition of a topic has that has the fewest; 0 if the topic does not exist.
pub(super) fn replicas(metadata: &Metadata, topic: &str) -> usize {
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let partitions = found.map(MetadataTopic::partitions).unwrap_or_default();
    let replicas = partitions
        .iter()
        .map(|partition| partition.replicas().len());
    replicas.min().unwrap_or_default()
}

async fn create(
    config: &Config,
    producer: &Arc<BaseProducer<Reports>>,
    topic: &str,
) -> Result<(), SessionError> {
    let failed = |error: KafkaError| {
        let action = format!("could not create topic {topic}");
        let reports = producer.context();
        reports.request_failed(action, TopicRight::Create, topic, error)
    };
    let admin: AdminClient<DefaultClientContext> =
        AdminClient::from_config(&config.client(None)).map_err(failed)?;
    let replication = TopicReplication::Fixed(config.replication_factor);
    let wanted = NewTopic::new(topic, config.partitions, replication);
    let outcomes = admin.create_topics([&wanted], &admin_options()).await;
    // Dropping the client blocks.
    let _ = tokio::task::spawn_blocking(move || drop(admin)).await;
    let outcomes = outcomes.map_err(failed)?;
    for outcome in outcomes {
        match outcome {
            Ok(_) => info!(
                code = "topic_created",
                topic,
                partitions = config.partitions,
                "created a missing topic"
            ),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(failed(KafkaError::AdminOp(code))),
        }
    }
    Ok(())
}
