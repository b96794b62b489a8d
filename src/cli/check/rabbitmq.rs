//! RabbitMQ: the nodes, the login, the exchange, and the queues.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::reach::client_tls;
use super::report::Area;
use super::servers::{Server, reach_all};
use crate::config::Loaded;
use crate::sink::rabbitmq::{BrokerUri, Config, Existence, NodeProbe};
use crate::telemetry::chain;

/// How long the login may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(7);

/// What to do about what is missing, and about what cannot be used.
const DECLARE: &str = "declare it, or set rabbitmq.declare to true";
const MAKE_USABLE: &str = "give the user the right, delete what is of another type, or correct the name; see \
                           docs/reference/broker-layout-and-rights.md";

pub(super) async fn check(loaded: Arc<Loaded>, area: Area) {
    let Some(config) = &loaded.config.rabbitmq else {
        return;
    };
    let tls = if config.uri.iter().any(BrokerUri::uses_tls) {
        match client_tls(config.tls.clone(), "rabbitmq.tls.").await {
            Ok(tls) => Some(tls),
            Err(problem) => return area.failed("tls", problem, "correct the file").await,
        }
    } else {
        None
    };
    let server = |uri: &BrokerUri| -> Server {
        let (host, port) = uri.host_and_port();
        let tls = tls.clone().filter(|_| uri.uses_tls());
        Server {
            name: format!("{host}:{port}"),
            host: host.to_owned(),
            port,
            tls,
        }
    };
    let servers: Vec<_> = config.uri.iter().map(server).collect();
    let reached = reach_all(&area, &servers).await;
    let uris = config.uri.iter().zip(reached);
    let uris: Vec<_> = uris
        .filter_map(|(uri, reached)| reached.then_some(uri))
        .collect();
    if uris.is_empty() {
        return area.untried("login", "no node was reached").await;
    }
    let Some(probe) = log_in(&area, config, &uris).await else {
        return;
    };
    report_exchange(&area, config, &probe).await;
    report_queues(&area, config, &probe).await;
    probe.close().await;
    let text = if config.declare {
        "the rights to bind and to publish are shown only by doing so"
    } else {
        "the right to publish, and whether a queue is bound, is shown only by publishing"
    };
    area.untried("publishing", text).await;
    let text = "RabbitMQ does not show its max_message_size over AMQP";
    area.untried("largest message", text).await;
}

/// Logs in at all of these nodes at the same time, and reports each. One that refuses it is a warning as long as another
/// one accepts it. Returns the first that accepts it.
async fn log_in(area: &Area, config: &Config, uris: &[&BrokerUri]) -> Option<NodeProbe> {
    let connecting = uris
        .iter()
        .map(async |uri| NodeProbe::connect(config, uri, CONNECT_TIMEOUT).await);
    let outcomes = join_all(connecting).await;
    let is_accepted = outcomes.iter().any(Result::is_ok);
    let mut first = None;
    for (uri, outcome) in uris.iter().zip(outcomes) {
        let action =
            "correct user, password, vhost or port in rabbitmq.uri, or see the log of the node";
        match outcome {
            Ok(probe) => {
                let (host, port) = uri.host_and_port();
                let text = format!("{host}:{port} accepts the user and the vhost");
                area.ok("login", text).await;
                match first {
                    None => first = Some(probe),
                    Some(_) => probe.close().await,
                }
            }
            Err(error) if is_accepted => {
                let text = format!("{}; the relay uses the others", chain(&error));
                area.warning("login", text, action).await;
            }
            Err(error) => area.failed("login", chain(&error), action).await,
        }
    }
    first
}

async fn report_exchange(area: &Area, config: &Config, probe: &NodeProbe) {
    let subject = format!("exchange {}", config.exchange);
    match probe.exchange().await {
        Ok(Existence::Exists) if config.declare => {
            area.ok(&subject, "exists, as the relay needs it").await;
        }
        Ok(Existence::Exists) => {
            let text = "exists; its type is shown only by declaring it (rabbitmq.declare is false)";
            area.ok(&subject, text).await;
        }
        Ok(Existence::Missing) => report_missing(area, config, &subject).await,
        Err(reason) => area.failed(&subject, reason, MAKE_USABLE).await,
    }
}

async fn report_queues(area: &Area, config: &Config, probe: &NodeProbe) {
    let queues = [
        ("queue", &config.queue),
        ("dead-letter queue", &config.dead_letter_queue),
    ];
    for (kind, queue) in queues {
        if queue.is_empty() {
            let text = "the relay has none of its own: other queues must be bound to the exchange";
            area.ok(kind, text).await;
            continue;
        }
        let subject = format!("{kind} {queue}");
        // If the relay does not declare it, it publishes events even without it.
        let is_optional = *queue == config.dead_letter_queue && !config.declare;
        match probe.queue(queue).await {
            Ok(Existence::Exists) => area.ok(&subject, "exists").await,
            Ok(Existence::Missing) if is_optional => {
                let text =
                    "does not exist, and rabbitmq.declare is false: dead letters stay in the spool";
                area.warning(&subject, text, DECLARE).await;
            }
            Ok(Existence::Missing) => report_missing(area, config, &subject).await,
            Err(reason) if is_optional => {
                let text = format!("{reason}: dead letters stay in the spool");
                area.warning(&subject, text, MAKE_USABLE).await;
            }
            Err(reason) => area.failed(&subject, reason, MAKE_USABLE).await,
        }
    }
}

async fn report_missing(area: &Area, config: &Config, subject: &str) {
    if config.declare {
        let text = "does not exist; the relay may declare it, and will";
        area.ok(subject, text).await;
    } else {
        let text = "does not exist, and rabbitmq.declare is false";
        area.failed(subject, text, DECLARE).await;
    }
}
