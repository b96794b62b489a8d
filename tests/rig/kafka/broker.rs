//! Implements `Broker` for Kafka.

use std::net::TcpStream;
use std::time::Duration;

use rdkafka::metadata::MetadataBroker;
use serde_json::Value;

use super::super::broker::{Broker, DeadLetter};
use super::super::{Setup, TIMEOUT};
use super::{Kafka, Operation, Record, Resource};

impl Broker for Kafka {
    fn start_with_limit(bytes: u32) -> Self {
        Self::start_with(&[("message.max.bytes", &bytes.to_string())])
    }

    fn sink(&self) -> &'static str {
        "kafka"
    }

    fn is_idempotent(&self) -> bool {
        true
    }

    fn settings(&self, setup: Setup, name: &str) -> Setup {
        setup
            .set("RECALL_KAFKA__BOOTSTRAP_SERVERS", &self.bootstrap_servers())
            .set("RECALL_KAFKA__TOPIC", name)
            .set("RECALL_KAFKA__DEAD_LETTER_TOPIC", &format!("{name}.dead"))
    }

    /// Has an effect only if the properties include [`AUTHORIZER`].
    fn settings_without_dead_letters(
        &self,
        setup: Setup,
        name: &str,
    ) -> (Setup, &'static str, &'static str) {
        let dead = format!("{name}.dead");
        self.create_topic(&dead, 2, &[]);
        self.permit(Resource::Topic(&dead), Operation::Describe);
        let setup = self.settings(setup, name);
        (
            self.as_user(setup),
            "dead_letter_topic",
            "TopicAuthorizationFailed",
        )
    }

    fn allow_dead_letters(&self, name: &str) {
        self.permit(Resource::Topic(&format!("{name}.dead")), Operation::Write);
    }

    fn node(&mut self, number: usize) -> &mut dyn Broker {
        self.node_mut(number)
    }

    fn stop(&mut self) {
        self.node.stop();
    }

    fn kill(&mut self) {
        self.node.kill();
    }

    fn resume(&mut self) {
        let port = self.port;
        let client = self.client();
        self.node.launch(|| {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
                && client
                    .inner()
                    .fetch_metadata(None, Duration::from_secs(2))
                    .is_ok_and(|seen| {
                        let led = |topic: &rdkafka::metadata::MetadataTopic| {
                            topic
                                .partitions()
                                .iter()
                                .all(|partition| partition.leader() >= 0)
                        };
                        let is_it = |broker: &MetadataBroker| broker.port() == i32::from(port);
                        seen.brokers().iter().any(is_it) && seen.topics().iter().all(led)
                    })
        });
    }

    /// A freeze that is longer than `broker.session.timeout.ms` (see `server_properties`) fences the broker, and it
    /// stays fenced for a moment after it was thawed.
    fn freeze(&self) {
        self.node.freeze();
    }

    fn thaw(&self) {
        self.node.thaw();
    }

    fn delete(&self, name: &str) {
        self.delete_topic(name);
    }

    fn events(&self, name: &str, at_least: usize) -> Vec<Value> {
        let records = self.read(name, at_least, TIMEOUT);
        records.iter().map(Record::event).collect()
    }

    fn dead_letters(&self, name: &str, at_least: usize) -> Vec<DeadLetter> {
        let records = self.read(&format!("{name}.dead"), at_least, TIMEOUT);
        let dead_letter = |record: &Record| DeadLetter {
            id: record.event()["id"].as_str().map(str::to_owned),
            kind: record.event()["type"].as_str().map(str::to_owned),
            reason: record.header("recall_reason").map(str::to_owned),
        };
        records.iter().map(dead_letter).collect()
    }
}
