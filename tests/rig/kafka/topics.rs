//! Topics, their records and groups, as an administrator changes them.

use std::fs::{self, OpenOptions};
use std::time::Duration;

use rdkafka::admin::{AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::{Offset, TopicPartitionList};

use super::super::node::{block_on, poll};
use super::{Kafka, TIMEOUT};

impl Kafka {
    /// Creates a topic, and waits until producers can find it.
    pub fn create_topic(&self, topic: &str, partitions: u32, configs: &[(&str, &str)]) {
        let count = i32::try_from(partitions).expect("too many partitions");
        let new = NewTopic::new(topic, count, TopicReplication::Fixed(1));
        let new = configs
            .iter()
            .fold(new, |new, (name, value)| new.set(name, value));
        let client = self.client();
        let results = block_on(async || client.create_topics([&new], &admin_options()).await);
        results.expect("no answer to CreateTopics")[0]
            .as_ref()
            .expect("cannot create the topic");
        let found = poll(TIMEOUT, || {
            let metadata = client
                .inner()
                .fetch_metadata(Some(topic), Duration::from_secs(2));
            metadata.is_ok_and(|metadata| {
                let found = metadata.topics()[0].partitions();
                found.len() == partitions as usize
                    && found.iter().all(|partition| partition.leader() >= 0)
            })
        });
        assert!(found, "topic {topic} does not appear after it was created");
    }

    /// Gives a topic these configs, and resets its other configs to their defaults.
    pub fn alter_topic(&self, topic: &str, configs: &[(&str, &str)]) {
        let alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
        let alter = configs
            .iter()
            .fold(alter, |alter, (name, value)| alter.set(name, value));
        let client = self.client();
        let results = block_on(async || client.alter_configs([&alter], &admin_options()).await);
        results.expect("no answer to AlterConfigs")[0]
            .as_ref()
            .expect("cannot alter the configs");
    }

    /// Deletes a topic, and waits until it is gone.
    pub fn delete_topic(&self, topic: &str) {
        let client = self.client();
        let results = block_on(async || client.delete_topics(&[topic], &admin_options()).await);
        results.expect("no answer to DeleteTopics")[0]
            .as_ref()
            .expect("cannot delete the topic");
        let gone = poll(TIMEOUT, || {
            let metadata = client
                .inner()
                .fetch_metadata(Some(topic), Duration::from_secs(2));
            metadata.is_ok_and(|metadata| metadata.topics()[0].error().is_some())
        });
        assert!(gone, "topic {topic} still exists after it was deleted");
    }

    /// Deletes all records of a topic; the topic stays, and its offsets continue.
    pub fn delete_records(&self, topic: &str) {
        let client = self.client();
        let metadata = client
            .inner()
            .fetch_metadata(Some(topic), TIMEOUT)
            .expect("no metadata");
        let mut all = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            all.add_partition_offset(topic, partition.id(), Offset::End)
                .expect("cannot set an offset");
        }
        let deleted = block_on(async || client.delete_records(&all, &admin_options()).await);
        deleted.expect("no answer to DeleteRecords");
    }

    /// Deletes the offsets of a group, as the broker itself does after `offsets.retention.minutes`.
    pub fn delete_group(&self, group: &str) {
        let client = self.client();
        let results = block_on(async || client.delete_groups(&[group], &admin_options()).await);
        results.expect("no answer to DeleteGroups")[0]
            .as_ref()
            .expect("cannot delete the group");
    }

    /// Removes the last batch of a partition and its producer state, as a power cut does, because Kafka confirms
    /// records that it has not synced. The broker must have been killed.
    pub fn lose_last_batch(&self, topic: &str, partition: i32) {
        let folder = self.node.path(&format!("data/{topic}-{partition}"));
        for entry in fs::read_dir(&folder).expect("cannot list the partition's folder") {
            let path = entry.expect("cannot list the files").path();
            if path.extension().is_some_and(|ending| ending == "snapshot") {
                fs::remove_file(path).expect("cannot remove a snapshot");
            }
        }
        let log = folder.join("00000000000000000000.log");
        let bytes = fs::read(&log).expect("cannot read the partition's log");
        let (mut at, mut last) = (0, 0);
        // A batch begins with its first offset (8 bytes), followed by its length (4 bytes).
        while let Some(length) = bytes.get(at + 8..at + 12) {
            let length = u32::from_be_bytes(length.try_into().expect("4 bytes"));
            last = at;
            at += 12 + length as usize;
            if length == 0 {
                break;
            }
        }
        let file = OpenOptions::new().write(true).open(&log);
        file.and_then(|file| file.set_len(last as u64))
            .expect("cannot truncate the log");
    }
}

fn admin_options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(TIMEOUT))
        .operation_timeout(Some(TIMEOUT))
}
