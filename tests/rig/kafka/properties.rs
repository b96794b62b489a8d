//! The `server.properties` of a node.

use std::collections::BTreeMap;

use super::{Kafka, NODE_ID, PASSWORD, Proxied, USER};

/// The default lines; `added` replaces them or adds to them.
pub(super) fn server_properties(kafka: &Kafka, added: &[(&str, &str)]) -> String {
    let (port, sasl, tls) = (kafka.port, kafka.sasl_port, kafka.tls_port);
    let controller = kafka.controller_port;
    let secure = added
        .iter()
        .any(|(name, _)| name.starts_with("listener.name.tls."));
    let tls = if secure {
        format!(",TLS://127.0.0.1:{tls}")
    } else {
        String::new()
    };
    let Proxied {
        listens,
        advertised,
    } = kafka.proxied;
    let clients =
        format!("PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{sasl}{tls},PROXIED://127.0.0.1:");
    let listeners = format!("{clients}{listens},CONTROLLER://127.0.0.1:{controller}");
    let advertised = format!("{clients}{advertised}");
    let node_id = NODE_ID.to_string();
    let voters = format!("{node_id}@127.0.0.1:{controller}");
    let ours = [
        ("node.id", node_id.as_str()),
        ("process.roles", "broker,controller"),
        ("controller.quorum.voters", &voters),
        ("controller.listener.names", "CONTROLLER"),
        ("inter.broker.listener.name", "PLAINTEXT"),
        ("listeners", &listeners),
        ("advertised.listeners", &advertised),
        (
            "listener.security.protocol.map",
            "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,\
             PROXIED:PLAINTEXT",
        ),
        ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256"),
        (
            "listener.name.sasl.plain.sasl.jaas.config",
            &format!(
                "org.apache.kafka.common.security.plain.PlainLoginModule required \
                 user_{USER}=\"{PASSWORD}\";"
            ),
        ),
        (
            "listener.name.sasl.scram-sha-256.sasl.jaas.config",
            "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        ),
        ("log.dirs", "data"),
        // Delete the segments of a deleted topic soon: a minute of load writes many gigabytes.
        ("log.segment.delete.delay.ms", "1000"),
        ("auto.create.topics.enable", "false"),
        // A killed broker cannot register again until its old session has ended.
        ("broker.session.timeout.ms", "4000"),
        ("broker.heartbeat.interval.ms", "500"),
        // One node: no replicas, no rebalance delay.
        ("offsets.topic.replication.factor", "1"),
        ("offsets.topic.num.partitions", "1"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("transaction.state.log.num.partitions", "1"),
        ("share.coordinator.state.topic.replication.factor", "1"),
        ("share.coordinator.state.topic.min.isr", "1"),
        ("group.initial.rebalance.delay.ms", "0"),
    ];
    let all: BTreeMap<_, _> = ours.iter().chain(added).copied().collect();
    let line = |(name, value): (&str, &str)| {
        format!(
            "{name}={}\n",
            value.replace('\\', "\\\\").replace('\n', "\\n")
        )
    };
    all.into_iter().map(line).collect()
}
