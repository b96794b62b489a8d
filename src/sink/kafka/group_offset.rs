//! The relay's position as the cluster keeps it: the offset of a consumer group without members.
//!
//! The offset is the number of the last published event. It is committed for partition 0 of the events' topic, although
//! it is not the offset of a record there. Its metadata name its owner and the event. It is written in the transaction
//! that contains the event, so both are committed or neither is.

use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Silent;
use super::reports::Reports;
use crate::event::{Fingerprint, Seq};
use crate::sink::CommittedPosition;

/// The partition that the offset is committed for; every topic has it.
const PARTITION: i32 = 0;

/// The committed offset of the relay's own group.
pub(super) struct GroupOffset {
    topic: String,
    /// The owner to write: this process.
    owner: Uuid,
    group: ConsumerGroupMetadata,
}

/// A committed offset.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Committed {
    pub position: CommittedPosition,
    /// The process that committed it; none if it was set by other means.
    pub owner: Option<Uuid>,
}

/// The metadata of the offset, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Metadata {
    owner: Uuid,
    event: Option<Fingerprint>,
}

impl GroupOffset {
    /// Reads a group's offset from the cluster; none if the cluster keeps none. Blocks.
    pub(super) fn read(
        client: &ClientConfig,
        group: &str,
        topic: &str,
        owner: Uuid,
        timeout: Duration,
    ) -> KafkaResult<(Self, Option<Committed>)> {
        let mut client = client.clone();
        client
            .set("group.id", group)
            // An offset whose transaction has just ended may not be visible yet: this waits until it is.
            .set("isolation.level", "read_committed")
            .set("statistics.interval.ms", "0");
        let consumer = BaseConsumer::from_config_and_context(&client, Silent)?;
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(topic, PARTITION);
        let found = consumer.committed_offsets(wanted, timeout)?;
        let group = consumer
            .group_metadata()
            .ok_or(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownGroup))?;
        let offset = Self {
            topic: topic.to_owned(),
            owner,
            group,
        };
        let committed = match found.find_partition(topic, PARTITION) {
            None => None,
            Some(found) => {
                found.error()?;
                committed(found.offset(), found.metadata())
            }
        };
        Ok((offset, committed))
    }

    /// Adds the offset to the producer's transaction. Blocks.
    pub(super) fn send(
        &self,
        position: CommittedPosition,
        producer: &BaseProducer<Reports>,
        timeout: Duration,
    ) -> KafkaResult<()> {
        let metadata = Metadata {
            owner: self.owner,
            event: position.event,
        };
        let mut offsets = TopicPartitionList::new();
        let mut offset = offsets.add_partition(&self.topic, PARTITION);
        offset.set_offset(Offset::Offset(position.seq.0.cast_signed()))?;
        offset.set_metadata(serde_json::to_string(&metadata).unwrap_or_default());
        producer.send_offsets_to_transaction(&offsets, &self.group, timeout)
    }
}

fn committed(offset: Offset, metadata: &str) -> Option<Committed> {
    let Offset::Offset(seq) = offset else {
        return None;
    };
    let metadata: Option<Metadata> = serde_json::from_str(metadata).ok();
    Some(Committed {
        position: CommittedPosition {
            seq: Seq(u64::try_from(seq).ok()?),
            event: metadata.as_ref().and_then(|metadata| metadata.event),
        },
        owner: metadata.map(|metadata| metadata.owner),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_without_our_metadata_has_no_owner() {
        assert_eq!(committed(Offset::Invalid, ""), None);
        for metadata in ["", "a note", "{}"] {
            let found = committed(Offset::Offset(7), metadata).unwrap();
            assert_eq!((found.position.seq, found.position.event), (Seq(7), None));
            assert_eq!(found.owner, None, "{metadata}");
        }
    }

    #[test]
    fn offset_metadata_round_trips() {
        let event = Some(Fingerprint {
            id: Uuid::from_u128(1),
            checksum: u32::MAX,
        });
        let owner = Uuid::from_u128(2);
        let written = serde_json::to_string(&Metadata { owner, event }).unwrap();
        let found = committed(Offset::Offset(1 << 62), &written).unwrap();
        let position = CommittedPosition {
            seq: Seq(1 << 62),
            event,
        };
        let expected = Committed {
            position,
            owner: Some(owner),
        };
        assert_eq!(found, expected);
    }
}
