//! The broker that `tail` subscribes to.

#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
use anyhow::Context as _;
use anyhow::{anyhow, bail};
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{TailArgs, bad_usage};
use crate::config::Config;
use crate::setting::{self, Secret};
use crate::sink::SubscriptionItem;
#[cfg(feature = "kafka")]
use crate::sink::kafka::{self, StartAt};
#[cfg(feature = "rabbitmq")]
use crate::sink::rabbitmq;

/// The broker of a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum TailSink {
    Kafka,
    Rabbitmq,
}

/// Subscribes, and reports what comes until it is stopped or the items are not received any more.
pub(super) type Subscribe = Box<
    dyn FnOnce(
        mpsc::Sender<SubscriptionItem>,
        CancellationToken,
    ) -> BoxFuture<'static, anyhow::Result<()>>,
>;

/// A user and its password.
type Credentials = (String, Secret);

/// The subscription to the broker that is named, or to the only one that is configured.
#[cfg_attr(
    not(any(feature = "kafka", feature = "rabbitmq")),
    expect(
        unused_variables,
        reason = "without clients, no broker can be configured"
    )
)]
pub(super) fn choose(args: &TailArgs, config: &Config) -> anyhow::Result<Subscribe> {
    let is_configured = |sink: &TailSink| match sink {
        #[cfg(feature = "kafka")]
        TailSink::Kafka => config.kafka.is_some(),
        #[cfg(feature = "rabbitmq")]
        TailSink::Rabbitmq => config.rabbitmq.is_some(),
        #[cfg(not(all(feature = "kafka", feature = "rabbitmq")))]
        _ => false,
    };
    let sinks = [TailSink::Kafka, TailSink::Rabbitmq];
    let mut configured = sinks.into_iter().filter(is_configured);
    let sink = match (args.sink, configured.next(), configured.next()) {
        (Some(sink), _, _) | (None, Some(sink), None) => sink,
        (None, None, _) => bail!(
            "no broker is configured, so the relay prints events on its own standard output; to subscribe to a \
             broker, set kafka.bootstrap_servers or rabbitmq.uri as for the relay"
        ),
        (None, Some(_), Some(_)) => {
            let problem = "Kafka and RabbitMQ are both configured: add `kafka` or `rabbitmq`";
            return Err(bad_usage(problem));
        }
    };
    if sink == TailSink::Rabbitmq && (args.since.is_some() || args.from_beginning) {
        return Err(bad_usage(
            "RabbitMQ keeps no event for a new queue, so --since and --from-beginning are for Kafka only; \
             `recall-relay spool list` shows earlier events",
        ));
    }
    if sink == TailSink::Kafka && args.force {
        return Err(bad_usage("--force is for RabbitMQ only"));
    }
    let credentials = credentials(args)?;
    #[cfg(feature = "kafka")]
    if let (TailSink::Kafka, Some(kafka)) = (sink, &config.kafka) {
        return from_kafka(args, kafka.clone(), credentials);
    }
    #[cfg(feature = "rabbitmq")]
    if let (TailSink::Rabbitmq, Some(rabbitmq)) = (sink, &config.rabbitmq) {
        let require_own_queue = !args.force;
        return Ok(from_rabbitmq(
            rabbitmq.clone(),
            require_own_queue,
            credentials,
        ));
    }
    // Also if this build has no credentials to use.
    drop(credentials);
    match sink {
        TailSink::Kafka => bail!("Kafka is not configured: set kafka.bootstrap_servers"),
        TailSink::Rabbitmq => bail!("RabbitMQ is not configured: set rabbitmq.uri"),
    }
}

fn credentials(args: &TailArgs) -> anyhow::Result<Option<Credentials>> {
    let (Some(user), Some(path)) = (&args.user, &args.password_file) else {
        return Ok(None);
    };
    let text = setting::read_text(path)
        .map_err(|problem| anyhow!("password file {} {problem}", path.display()))?;
    let password = setting::clean(&text).to_owned();
    if password.is_empty() {
        bail!("password file {} is empty", path.display());
    }
    Ok(Some((user.clone(), password.into())))
}

#[cfg(feature = "kafka")]
fn from_kafka(
    args: &TailArgs,
    mut config: kafka::Config,
    credentials: Option<Credentials>,
) -> anyhow::Result<Subscribe> {
    if let Some((user, password)) = credentials {
        config = config
            .with_credentials(&user, &password)
            .map_err(|error| bad_usage(&error.to_string()))?;
    }
    let start = match args.since {
        Some(since) => StartAt::Time(since.0),
        None if args.from_beginning => StartAt::Beginning,
        None => StartAt::Now,
    };
    Ok(Box::new(move |items, stop| {
        let subscribe = move || kafka::subscribe(&config, start, &items, &stop);
        Box::pin(async move {
            let subscribed = tokio::task::spawn_blocking(subscribe).await?;
            subscribed.context("cannot subscribe to Kafka")
        })
    }))
}

#[cfg(feature = "rabbitmq")]
fn from_rabbitmq(
    mut config: rabbitmq::Config,
    require_own_queue: bool,
    credentials: Option<Credentials>,
) -> Subscribe {
    if let Some((user, password)) = credentials {
        config = config.with_credentials(&user, &password);
    }
    Box::new(move |items, stop| {
        Box::pin(async move {
            let subscribed = rabbitmq::subscribe(&config, require_own_queue, &items, &stop).await;
            subscribed.context("cannot subscribe to RabbitMQ")
        })
    })
}
