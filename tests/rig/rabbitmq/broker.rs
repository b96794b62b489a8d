//! Implements `Broker` for RabbitMQ.

use std::sync::atomic::Ordering;
use std::time::Duration;

use lapin::options::QueueDeleteOptions;
use serde_json::Value;
use tokio::time::timeout;

use super::super::Setup;
use super::super::broker::{Broker, DeadLetter};
use super::super::node::{block_on, poll};
use super::{Delivery, RabbitMq, TIMEOUT, close, connect};

/// Starts an election in each quorum queue that has no leader; prints the number of these queues.
///
/// A single node of RabbitMQ 3.10 elects a leader half a second after it accepts connections, and never if a client's
/// command arrives earlier: that command cancels the election's timer (rabbitmq-server issue 10070).
const ELECT: &str = "\
    Leaderless = [Name || Q <- rabbit_amqqueue:list(),
        amqqueue:get_type(Q) =:= rabbit_quorum_queue,
        {Name, _} <- [amqqueue:get_pid(Q)],
        ra_leaderboard:lookup_leader(Name) =:= undefined],
    [ra:trigger_election({Name, node()}) || Name <- Leaderless],
    length(Leaderless).";

/// Syncs the list of quorum queues to disk.
///
/// RabbitMQ does so half a second after a queue was declared. If it is killed before, it starts with an empty queue of
/// that name, and all confirmed messages are lost (seen in 3.10).
const SYNC_QUEUE_LIST: &str = "[ok = dets:sync(Table) || Table <- dets:all()].";

impl Broker for RabbitMq {
    fn start_with_limit(bytes: u32) -> Self {
        Self::start_with(&[&format!("max_message_size = {bytes}")])
    }

    fn sink(&self) -> &'static str {
        "rabbitmq"
    }

    fn is_idempotent(&self) -> bool {
        false
    }

    fn settings(&self, setup: Setup, name: &str) -> Setup {
        let nodes = [self].into_iter().chain(&self.others);
        let uris = nodes.map(Self::uri).collect::<Vec<_>>().join(",");
        setup
            .set("RECALL_RABBITMQ__URI", &uris)
            .set("RECALL_RABBITMQ__EXCHANGE", name)
            .set("RECALL_RABBITMQ__QUEUE", name)
            .set(
                "RECALL_RABBITMQ__DEAD_LETTER_QUEUE",
                &format!("{name}.dead"),
            )
    }

    /// The user may do everything except publish to the default exchange.
    fn settings_without_dead_letters(
        &self,
        setup: Setup,
        name: &str,
    ) -> (Setup, &'static str, &'static str) {
        self.ctl(&["add_user", name, name]);
        // For permissions the default exchange is named amq.default.
        let ours = format!("^{name}.*$");
        self.ctl(&["set_permissions", name, &ours, &ours, &ours]);
        let uri = format!("amqp://{name}:{name}@127.0.0.1:{}", self.port);
        let setup = self.settings(setup, name).set("RECALL_RABBITMQ__URI", &uri);
        (setup, "dead_letter_queue", "ACCESS_REFUSED")
    }

    fn allow_dead_letters(&self, name: &str) {
        self.ctl(&["set_permissions", name, ".*", ".*", ".*"]);
    }

    fn node(&mut self, number: usize) -> &mut dyn Broker {
        self.node_mut(number)
    }

    fn stop(&mut self) {
        self.node.stop();
        *self.frozen.get_mut() = false;
    }

    /// Has the node sync its list of quorum queues first, unless it is frozen.
    fn kill(&mut self) {
        if self.node.is_running() && !*self.frozen.get_mut() {
            self.ctl(&["eval", SYNC_QUEUE_LIST]);
        }
        self.node.kill();
        *self.frozen.get_mut() = false;
    }

    fn freeze(&self) {
        self.node.freeze();
        self.frozen.store(true, Ordering::Relaxed);
    }

    fn thaw(&self) {
        self.node.thaw();
        self.frozen.store(false, Ordering::Relaxed);
    }

    /// Also waits until its queues have leaders.
    fn resume(&mut self) {
        let uri = self.uri();
        self.node.launch(|| {
            block_on(async || {
                let connection = timeout(Duration::from_secs(5), connect(&uri)).await;
                if let Ok(Ok(connection)) = connection {
                    close(connection).await;
                    true
                } else {
                    false
                }
            })
        });
        if self.was_up {
            let elected = poll(TIMEOUT, || self.ctl(&["eval", ELECT]) == "0");
            assert!(elected, "quorum queues stay without a leader");
        }
        self.was_up = true;
    }

    fn delete(&self, name: &str) {
        self.with_channel(async |channel| {
            let deleted = channel.queue_delete(name.into(), QueueDeleteOptions::default());
            deleted.await.expect("cannot delete the queue");
        });
    }

    fn events(&self, name: &str, at_least: usize) -> Vec<Value> {
        let deliveries = self.read(name, at_least, super::super::TIMEOUT);
        let bodies = deliveries.iter().map(|delivery| &delivery.body);
        bodies
            .map(|body| serde_json::from_slice(body).unwrap())
            .collect()
    }

    fn dead_letters(&self, name: &str, at_least: usize) -> Vec<DeadLetter> {
        let deliveries = self.read(&format!("{name}.dead"), at_least, super::super::TIMEOUT);
        let dead_letter = |delivery: &Delivery| DeadLetter {
            id: delivery.message_id.clone(),
            kind: delivery.kind.clone(),
            reason: delivery.header("recall_reason").map(str::to_owned),
        };
        deliveries.iter().map(dead_letter).collect()
    }
}
