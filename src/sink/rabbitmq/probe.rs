//! Looks at a node without changing it: declares passively what the relay needs, and publishes nothing.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};
use tokio::time::timeout;

use super::broker_uri::BrokerUri;
use super::channel::{explain, is};
use super::config::{Config, ShortName};
use super::connect::{declare_exchange, declare_queue, open_connection};
use super::socket::ShutdownOnDrop;
use crate::sink::SessionError;

/// How long a request may take, and how long a graceful close may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A node that was reached.
pub struct NodeProbe {
    config: Config,
    connection: Connection,
    _shutdown: ShutdownOnDrop,
}

/// Whether an exchange or a queue exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existence {
    /// It exists, as the relay needs it.
    Exists,
    /// It does not exist. With `rabbitmq.declare`, the user may declare it.
    Missing,
}

impl NodeProbe {
    /// Connects to a node as the sink does: TLS, login, vhost.
    ///
    /// # Errors
    /// The node cannot be reached within this time, or refuses the user or the vhost.
    pub async fn connect(
        config: &Config,
        uri: &BrokerUri,
        timeout: Duration,
    ) -> Result<Self, SessionError> {
        let opened = open_connection(config, uri.parts().clone(), timeout).await;
        let (connection, shutdown) = opened?;
        Ok(Self {
            config: config.clone(),
            connection,
            _shutdown: shutdown,
        })
    }

    /// Looks for the exchange. If the relay declares it, also checks the type, and the right to do so.
    ///
    /// # Errors
    /// Says why the relay could not use it.
    pub async fn exchange(&self) -> Result<Existence, String> {
        let exchange = &self.config.exchange;
        let resource = format!("exchange {exchange}");
        let passive = self.passive();
        let existence = self
            .existence(&resource, async |channel| {
                declare_exchange(&passive, channel).await
            })
            .await?;
        if !self.config.declare {
            return Ok(existence);
        }
        let declared = match existence {
            // Declaring what exists changes nothing. The broker compares the type.
            Existence::Exists => {
                self.request(async |channel| declare_exchange(&self.config, channel).await)
                    .await
            }
            Existence::Missing => {
                self.request(async |channel| refused_exchange(exchange, channel).await)
                    .await
            }
        };
        Self::may_declare(existence, declared, &resource)
    }

    /// Looks for a queue. If the relay declares it, also checks its type, and the right to do so.
    ///
    /// # Errors
    /// Says why the relay could not use it.
    pub async fn queue(&self, queue: &ShortName) -> Result<Existence, String> {
        let resource = format!("queue {queue}");
        let passive = self.passive();
        let existence = self
            .existence(&resource, async |channel| {
                declare_queue(&passive, channel, queue).await
            })
            .await?;
        if !self.config.declare {
            return Ok(existence);
        }
        let declared = match existence {
            Existence::Exists => {
                self.request(async |channel| declare_queue(&self.config, channel, queue).await)
                    .await
            }
            Existence::Missing => {
                self.request(async |channel| refused_queue(queue, channel).await)
                    .await
            }
        };
        Self::may_declare(existence, declared, &resource)
    }

    /// Closes the connection.
    pub async fn close(self) {
        let _ = timeout(CLOSE_TIMEOUT, self.connection.close(200, "OK".into())).await;
    }

    fn passive(&self) -> Config {
        Config {
            declare: false,
            ..self.config.clone()
        }
    }

    async fn existence(
        &self,
        resource: &str,
        declare: impl AsyncFnOnce(&Channel) -> lapin::Result<()>,
    ) -> Result<Existence, String> {
        match self.request(declare).await {
            Ok(Ok(())) => Ok(Existence::Exists),
            Ok(Err(error)) if is(&error, &AMQPSoftError::NOTFOUND) => Ok(Existence::Missing),
            Ok(Err(error)) => Err(explain(&error, "read", resource)),
            Err(reason) => Err(format!("{resource}: {reason}")),
        }
    }

    /// Judges an attempt to declare what exists, or to declare what is missing in a way that the broker refuses.
    fn may_declare(
        existence: Existence,
        declared: Result<lapin::Result<()>, String>,
        resource: &str,
    ) -> Result<Existence, String> {
        match declared {
            Ok(Ok(())) => Ok(existence),
            // Refused, but not for lack of a right: that is checked first.
            Ok(Err(error))
                if existence == Existence::Missing
                    && is(&error, &AMQPSoftError::PRECONDITIONFAILED) =>
            {
                Ok(existence)
            }
            Ok(Err(error)) => Err(explain(&error, "configure", resource)),
            Err(reason) => Err(format!("{resource}: {reason}")),
        }
    }

    /// Makes a request on a channel of its own, because an error closes the channel.
    async fn request(
        &self,
        request: impl AsyncFnOnce(&Channel) -> lapin::Result<()>,
    ) -> Result<lapin::Result<()>, String> {
        let whole = async {
            let channel = self.connection.create_channel().await?;
            let outcome = request(&channel).await;
            if outcome.is_ok() {
                channel.close(200, "OK".into()).await?;
            }
            outcome
        };
        let seconds = REQUEST_TIMEOUT.as_secs();
        timeout(REQUEST_TIMEOUT, whole)
            .await
            .map_err(|_| format!("the broker did not answer within {seconds} s"))
    }
}

impl std::fmt::Debug for NodeProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeProbe").finish_non_exhaustive()
    }
}

/// Declares an exchange with an argument of the wrong type. RabbitMQ checks the right first, then refuses. If another
/// broker accepts it, the exchange is deleted again.
async fn refused_exchange(name: &ShortName, channel: &Channel) -> lapin::Result<()> {
    let mut arguments = FieldTable::default();
    arguments.insert("alternate-exchange".into(), AMQPValue::LongInt(0));
    let options = ExchangeDeclareOptions::default();
    channel
        .exchange_declare(name.as_amqp(), ExchangeKind::Topic, options, arguments)
        .await?;
    let unused = ExchangeDeleteOptions {
        if_unused: true,
        ..ExchangeDeleteOptions::default()
    };
    channel.exchange_delete(name.as_amqp(), unused).await
}

/// Declares a queue that would expire before it exists. RabbitMQ checks the right first, then refuses. If another
/// broker accepts it, the queue is gone with the connection, because it is exclusive.
async fn refused_queue(name: &ShortName, channel: &Channel) -> lapin::Result<()> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-expires".into(), AMQPValue::LongInt(-1));
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(name.as_amqp(), options, arguments);
    declared.await.map(drop)
}
