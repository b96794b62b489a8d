//! Makes sure that the cluster is there and has the topics.

use std::sync::Arc;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfig as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseProducer, Producer as _};
use tracing::info;

use super::reports::Reports;
use super::{Config, REQUEST_TIMEOUT};
use crate::sink::SessionError;

/// Asks the cluster for both topics, and creates what is missing where that is wanted.
pub(super) async fn ensure(
    config: &Config,
    producer: &Arc<BaseProducer<Reports>>,
) -> Result<(), SessionError> {
    for topic in [&config.topic, &config.dead_letter_topic] {
        match look_up(producer, topic).await? {
            None => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
                if config.create_topics =>
            {
                create(config, topic).await?;
            }
            Some(code) => {
                let reason = format!("topic {topic}: {code}");
                return Err(SessionError::Unavailable(reason, None));
            }
        }
    }
    Ok(())
}

/// What is wrong with a topic, if anything.
async fn look_up(
    producer: &Arc<BaseProducer<Reports>>,
    topic: &str,
) -> Result<Option<RDKafkaErrorCode>, SessionError> {
    let (client, name) = (Arc::clone(producer), topic.to_owned());
    let metadata = tokio::task::spawn_blocking(move || {
        client.client().fetch_metadata(Some(&name), REQUEST_TIMEOUT)
    })
    .await
    .map_err(|error| SessionError::unavailable("the runtime is stopping", error))?
    .map_err(|error| match producer.context().last_error() {
        Some(reason) => {
            SessionError::Unavailable(format!("could not reach the cluster: {reason}"), None)
        }
        None => SessionError::unavailable("could not reach the cluster", error),
    })?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    Ok(found
        .and_then(MetadataTopic::error)
        .map(RDKafkaErrorCode::from))
}

async fn create(config: &Config, topic: &str) -> Result<(), SessionError> {
    let failed = |error: KafkaError| {
        SessionError::unavailable(format!("could not create topic {topic}"), error)
    };
    let admin: AdminClient<DefaultClientContext> =
        AdminClient::from_config(&config.client()).map_err(failed)?;
    let replication = TopicReplication::Fixed(config.replication_factor);
    let wanted = NewTopic::new(topic, config.partitions, replication);
    let options = AdminOptions::new()
        .request_timeout(Some(REQUEST_TIMEOUT))
        .operation_timeout(Some(REQUEST_TIMEOUT));
    let outcomes = admin.create_topics([&wanted], &options).await;
    // To drop the client blocks.
    let _ = tokio::task::spawn_blocking(move || drop(admin)).await;
    let outcomes = outcomes.map_err(failed)?;
    for outcome in outcomes {
        match outcome {
            Ok(_) => info!(topic, partitions = config.partitions, "created topic"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(failed(KafkaError::AdminOp(code))),
        }
    }
    Ok(())
}
