//! A cluster of three nodes, whose quorum queues have three members, one of which may be lost with its disk.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::thread;

use super::super::broker::Broker as _;
use super::super::node::{free_port, poll};
use super::{RabbitMq, TIMEOUT};

const NODES: usize = 3;

/// The nodes of a cluster find each other through one epmd. The first node starts it, and it survives that node's kill,
/// unless nodes are containers.
fn name(number: usize) -> String {
    format!("rabbit{number}@localhost")
}

impl RabbitMq {
    /// A running cluster: the first node, which has the others.
    pub fn start_cluster() -> Self {
        let epmd_port = free_port();
        let mut nodes = [0, 1, 2].map(|number| {
            let rabbitmq = Self::new_stopped();
            rabbitmq.write_ports(&name(number), epmd_port);
            rabbitmq.node.write(".erlang.cookie", "rig");
            let cookie = rabbitmq.node.path(".erlang.cookie");
            fs::set_permissions(cookie, Permissions::from_mode(0o400))
                .expect("cannot protect the cookie");
            rabbitmq
        });
        let [mut first, others @ ..] = {
            nodes[0].resume();
            thread::scope(|scope| {
                for node in &mut nodes[1..] {
                    scope.spawn(|| node.resume());
                }
            });
            nodes
        };
        for other in &others {
            other.join(&name(0));
        }
        first.others = others.into();
        first
    }

    /// Kills a node and deletes its data.
    pub fn lose_node(&mut self, number: usize) {
        self.node_mut(number).node.lose();
    }

    /// Starts a node that was lost, with an empty disk, and gives each quorum queue a member on it again.
    pub fn replace_node(&mut self, number: usize) {
        let (lost, rest) = (name(number), (number + 1) % NODES);
        let others = self.node_mut(rest);
        others.ctl(&[
            "eval",
            &format!("rabbit_quorum_queue:shrink_all('{lost}')."),
        ]);
        others.ctl(&["forget_cluster_node", &lost]);
        let node = self.node_mut(number);
        node.resume();
        node.join(&name(rest));
        let others = self.node_mut(rest);
        let grow = format!(
            "rabbit_quorum_queue:grow('{lost}', <<\".*\">>, <<\".*\">>, all),
             length([Q || Q <- rabbit_amqqueue:list(), amqqueue:get_type(Q) =:= rabbit_quorum_queue,
                          length(maps:get(nodes, amqqueue:get_type_state(Q))) < {NODES}])."
        );
        let grown = poll(TIMEOUT, || others.ctl(&["eval", &grow]) == "0");
        assert!(grown, "quorum queues have too few members");
    }

    fn join(&self, other: &str) {
        self.ctl(&["stop_app"]);
        self.ctl(&["join_cluster", other]);
        self.ctl(&["start_app"]);
    }

    pub(super) fn node_mut(&mut self, number: usize) -> &mut Self {
        match number.checked_sub(1) {
            None => self,
            Some(other) => &mut self.others[other],
        }
    }
}
