//! The sinks of the program: starts their forwarders, and drains them at a stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::info;

use crate::forwarder::{Forwarder, SinkHandle, Stop};
use crate::reload::Targets;
use crate::sink::{Confirms, Sink, stdout};
use crate::spool::{Cursor, Spool};

/// The forwarders, and the handle that stops them.
pub(super) struct Sinks {
    spool: Spool,
    stop: Stop,
    pub(super) running: JoinSet<()>,
    pub(super) handles: Vec<SinkHandle>,
    /// Of each broker that answers wait for.
    pub(super) confirms: Vec<Arc<Confirms>>,
}

impl Sinks {
    pub(super) fn new(spool: Spool) -> Self {
        Self {
            spool,
            stop: Stop::default(),
            running: JoinSet::new(),
            handles: Vec::new(),
            confirms: Vec::new(),
        }
    }

    fn cursor(&self, sink: &str) -> anyhow::Result<Cursor> {
        let cursor = self.spool.cursor(sink);
        cursor.with_context(|| format!("spool has no cursor of sink {sink}"))
    }

    /// From now on answers wait for these brokers, each of them at most for `deadline`.
    pub(super) fn let_answers_wait(
        &mut self,
        names: &[&'static str],
        deadline: Duration,
    ) -> anyhow::Result<()> {
        for name in names {
            let reached = self.cursor(name)?.position();
            let confirms = Confirms::new(name, reached, deadline);
            self.confirms.push(Arc::new(confirms));
        }
        Ok(())
    }

    pub(super) fn start_all(&mut self, targets: &Targets) -> anyhow::Result<()> {
        #[cfg(feature = "kafka")]
        if let Some(settings) = &targets.kafka {
            let spool_id = self.spool.id();
            let settings = settings.subscribe();
            let is_awaited = !self.confirms.is_empty();
            self.start(crate::sink::kafka::Kafka::new(
                settings, spool_id, is_awaited,
            ))?;
        }
        #[cfg(feature = "rabbitmq")]
        if let Some(settings) = &targets.rabbitmq {
            let settings = settings.subscribe();
            self.start(crate::sink::rabbitmq::RabbitMq::new(settings))?;
        }
        // Otherwise unused in a build without brokers.
        let _ = targets;
        if self.handles.is_empty() {
            self.start(stdout::Stdout::default())?;
        }
        Ok(())
    }

    fn start(&mut self, sink: impl Sink) -> anyhow::Result<()> {
        let name = sink.name();
        let mut handle = SinkHandle::new(name, self.cursor(name)?);
        let mut confirms = self.confirms.iter();
        handle.confirms = confirms.find(|confirms| confirms.sink() == name).cloned();
        let forwarder = Forwarder::new(sink, self.spool.clone(), &handle, self.stop.clone());
        self.handles.push(handle);
        self.running.spawn(forwarder.run());
        Ok(())
    }

    /// Lets the forwarders publish the remaining events until the deadline, and then close their sessions.
    pub(super) async fn drain(&mut self, deadline: Instant, close_timeout: Duration) {
        self.stop.drain.cancel();
        let all = async { while self.running.join_next().await.is_some() {} };
        if timeout_at(deadline, all).await.is_err() {
            self.stop.now.cancel();
            let all = async { while self.running.join_next().await.is_some() {} };
            let _ = timeout(close_timeout, all).await;
        }
        self.running.shutdown().await;
        let last = self.spool.status().last;
        for sink in &self.handles {
            let left = sink.lag(last);
            if left > 0 {
                let sink = sink.state.sink();
                info!(
                    code = "events_unconfirmed",
                    sink,
                    events = left,
                    "sink has not confirmed all events; they stay in the spool and are published after the next start"
                );
            }
        }
    }
}
