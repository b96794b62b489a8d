//! A cluster of three nodes with three replicas of everything, one of which may be lost with its disk.

use std::thread;
use std::time::Duration;

use rdkafka::metadata::{Metadata, MetadataTopic};

use super::super::broker::Broker as _;
use super::super::node::poll;
use super::{AUTHORIZER, Kafka, TIMEOUT, properties};

const NODES: usize = 3;

/// What an operator sets who wants to lose no confirmed record with a node.
const REPLICATED: [(&str, &str); 5] = [
    ("default.replication.factor", "3"),
    ("min.insync.replicas", "2"),
    ("offsets.topic.replication.factor", "3"),
    ("transaction.state.log.replication.factor", "3"),
    ("transaction.state.log.min.isr", "2"),
];

impl Kafka {
    /// A running cluster with an [`AUTHORIZER`]: the first node, which has the others.
    pub fn start_cluster() -> Self {
        let mut nodes = [(); NODES].map(|()| Self::new_stopped());
        let numbered = || (1..).zip(&nodes);
        let voters =
            numbered().map(|(id, node)| format!("{id}@127.0.0.1:{}", node.controller_port));
        let voters = voters.collect::<Vec<_>>().join(",");
        for (id, node) in numbered() {
            let id = id.to_string();
            let own = [
                ("node.id", id.as_str()),
                ("controller.quorum.voters", voters.as_str()),
            ];
            let all = [&own[..], &REPLICATED, &AUTHORIZER].concat();
            let properties = properties::server_properties(node, &all);
            node.node.write("server.properties", &properties);
        }
        thread::scope(|scope| {
            for node in &mut nodes {
                scope.spawn(|| node.resume());
            }
        });
        let [mut first, others @ ..] = nodes;
        first.others = others.into();
        first
    }

    /// Kills a node and deletes its data.
    pub fn lose_node(&mut self, number: usize) {
        self.node_mut(number).node.lose();
    }

    /// Starts a node that was lost, with an empty disk, and waits until it has a copy of everything. First waits until
    /// the others have noticed the loss: otherwise it could still be the leader of records that it has lost.
    pub fn replace_node(&mut self, number: usize) {
        let port = i32::from(self.node_mut(number).port);
        self.until_metadata("the cluster still lists a killed node", |seen| {
            seen.brokers().iter().all(|broker| broker.port() != port)
        });
        self.node_mut(number).resume();
        self.until_metadata("partitions have too few in-sync replicas", |seen| {
            let mut partitions = seen.topics().iter().flat_map(MetadataTopic::partitions);
            partitions.all(|partition| partition.isr().len() == NODES)
        });
    }

    pub(super) fn node_mut(&mut self, number: usize) -> &mut Self {
        match number.checked_sub(1) {
            None => self,
            Some(other) => &mut self.others[other],
        }
    }

    fn until_metadata(&self, otherwise: &str, condition: impl Fn(&Metadata) -> bool) {
        let client = self.client();
        let found = poll(TIMEOUT, || {
            let seen = client.inner().fetch_metadata(None, Duration::from_secs(2));
            seen.is_ok_and(|seen| condition(&seen))
        });
        assert!(found, "{otherwise}");
    }
}
