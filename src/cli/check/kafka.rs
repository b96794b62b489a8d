//! Kafka: the bootstrap servers, the cluster as its clients see it, the topics, and the largest message.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use futures_util::future::join_all;

use super::reach::reach;
use super::report::Area;
use super::servers::{Server, reach_all};
use crate::config::Loaded;
use crate::receiver::AnswerAfter;
use crate::sink::kafka::{ClusterProbe, Config, FoundTopic, host_and_port};
use crate::telemetry::chain;

/// How long TLS, login and the first answer may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(7);

/// What an event has beside the body of its callback: the query, the envelope, and Kafka's own headers.
const EVENT_OVERHEAD: u64 = 4 << 10;

pub(super) async fn check(loaded: Arc<Loaded>, area: Area) {
    let Some(config) = &loaded.config.kafka else {
        return;
    };
    let servers = config.bootstrap_servers.split(',').map(str::trim);
    let servers = servers.filter_map(|server| {
        let (host, port) = host_and_port(server)?;
        // librdkafka has a TLS of its own.
        Some(Server {
            name: server.to_owned(),
            host: host.to_owned(),
            port,
            tls: None,
        })
    });
    let servers: Vec<_> = servers.collect();
    if !reach_all(&area, &servers).await.contains(&true) {
        let text = "no bootstrap server was reached";
        return area.untried("cluster", text).await;
    }
    let probe = match ClusterProbe::connect(config, CONNECT_TIMEOUT).await {
        Ok(probe) => probe,
        Err(error) => {
            let action = "correct kafka.properties (security.protocol, sasl.…, ssl.…); if the reason names an address \
                          that is not a bootstrap server, correct advertised.listeners of the broker; else see the log \
                          of the broker";
            return area.failed("cluster", chain(&error), action).await;
        }
    };
    let count = probe.brokers.len();
    let text = format!("connected and logged in; the cluster has {count} brokers");
    area.ok("cluster", text).await;
    if config.uses_tls() {
        let text =
            "librdkafka does not show the brokers' certificates, only that it has accepted them";
        area.untried("certificates", text).await;
    }
    report_advertised(&area, &probe).await;
    let answer_after = loaded.config.answer_after;
    for topic in [
        ("topic", config.topic.as_str()),
        ("dead-letter topic", &config.dead_letter_topic),
    ] {
        report_topic(&area, config, &probe, topic, answer_after).await;
    }
    report_largest(&area, &loaded, config, &probe).await;
    probe.close().await;
    let text = "the right Write on the topics is shown only by publishing";
    area.untried("publishing", text).await;
    if config.exactly_once {
        let text = "a transaction of the check would fence the producer of a running relay";
        area.untried("transactions", text).await;
    }
}

/// Reports whether clients can connect to what the brokers call themselves.
async fn report_advertised(area: &Area, probe: &ClusterProbe) {
    let reaching = probe.brokers.iter().map(async |broker| {
        let reached = reach(&broker.host, broker.port, None).await;
        (broker, reached.err())
    });
    let mut fine = true;
    for (broker, error) in join_all(reaching).await {
        let Some(error) = error else {
            continue;
        };
        fine = false;
        let (id, host, port) = (broker.id, &broker.host, broker.port);
        let text = format!("broker {id} advertises {host}:{port}: {}", error.reason);
        let action = "correct advertised.listeners of the broker, or DNS and firewall of this host";
        area.failed("advertised listeners", text, action).await;
    }
    if fine {
        let text = "every broker can be reached at the address that it advertises";
        area.ok("advertised listeners", text).await;
    }
}

/// Reports whether a topic can be used, or made.
async fn report_topic(
    area: &Area,
    config: &Config,
    probe: &ClusterProbe,
    (kind, topic): (&str, &str),
    answer_after: AnswerAfter,
) {
    let subject = format!("{kind} {topic}");
    let grant = "give the user the right, or correct the topic's name";
    match probe.topic(topic).await {
        Ok(Some(FoundTopic {
            partitions,
            replicas: 1,
        })) if answer_after == AnswerAfter::Broker => {
            let text = format!(
                "exists and has {partitions} partitions, but one replica: with answer_after = \"broker\", recalls that \
                 were answered OK are lost with the broker's disk"
            );
            let action = "add replicas, and set min.insync.replicas of the topic to 2";
            area.warning(&subject, text, action).await;
        }
        Ok(Some(FoundTopic { partitions, .. })) => {
            let text = format!("exists and has {partitions} partitions");
            area.ok(&subject, text).await;
        }
        Ok(None) if config.create_topics => match probe.check_creation(topic).await {
            Ok(()) => {
                let text = "does not exist; the relay may create it, and will";
                area.ok(&subject, text).await;
            }
            Err(error) => {
                let action = "give the user the right, correct kafka.partitions or kafka.replication_factor, or \
                              create the topic";
                area.failed(&subject, chain(&error), action).await;
            }
        },
        Ok(None) => {
            let text = "does not exist, and kafka.create_topics is false";
            let action = "create it, or set kafka.create_topics to true";
            area.failed(&subject, text, action).await;
        }
        Err(error) => area.failed(&subject, chain(&error), grant).await,
    }
}

/// Reports whether the largest callback fits into a message.
async fn report_largest(area: &Area, loaded: &Loaded, config: &Config, probe: &ClusterProbe) {
    let body = loaded.config.http.max_body_bytes;
    // A dead letter has the body as base64, if that is shorter.
    let needed = body.0 / 3 * 4 + EVENT_OVERHEAD;
    let size = |bytes| ByteSize(bytes).display().iec().to_string();
    let mut fine = true;
    let mut too_small = async |name: &str, limit: u64| {
        if limit < needed {
            fine = false;
            let text = format!(
                "{name} is {limit} bytes, but a callback of http.max_body_bytes ({body}) needs {needed}: a larger \
                 event becomes a dead letter, and a larger dead letter stays in the spool"
            );
            let action = "raise it, or lower http.max_body_bytes";
            area.warning("largest message", text, action).await;
        }
    };
    too_small(
        "kafka.properties.message.max.bytes",
        config.largest_message(),
    )
    .await;
    let mut untried = Vec::new();
    for topic in [&config.topic, &config.dead_letter_topic] {
        let exists = matches!(probe.topic(topic).await, Ok(Some(_)));
        match probe.largest_message(exists.then_some(topic)).await {
            Ok(limit) => {
                let name = if exists {
                    format!("max.message.bytes of topic {topic}")
                } else {
                    format!("message.max.bytes of the cluster, for topic {topic}")
                };
                too_small(&name, limit).await;
            }
            Err(reason) => untried.push(format!("topic {topic}: {reason}")),
        }
    }
    if !untried.is_empty() {
        let text = format!(
            "the cluster does not show the limit of {}",
            untried.join("; ")
        );
        area.untried("largest message", text).await;
    } else if fine {
        let text = format!("every callback fits: it needs up to {}", size(needed));
        area.ok("largest message", text).await;
    }
}
