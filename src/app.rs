//! Builds the program from its settings, runs it until a stop is requested, and stops its parts in the order in which
//! data flows through them.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{self, Admin, ProcessMetrics};
use crate::config::Config;
use crate::control::{self, ControlServer};
use crate::forwarder::{Forwarder, SinkHandle, Stop};
use crate::receiver::{Auth, CallbackService, ConnectionSetup, Handshakes, Listener};
use crate::reload::Targets;
use crate::setting::ServerCertificate;
use crate::sink::{Sink, stdout};
use crate::spool::{Opened, Spool};
use crate::upstream::Upstream;

/// How often a relay that has started checks whether it is ready.
const READY_CHECK: Duration = Duration::from_millis(200);

/// How long pending answers may take to reach their clients after a failure.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// How long sessions may take to close after the deadline of a drain. docs/how-to/deploy.md adds up this timeout and
/// those for closing the spool, shutting down the runtime and flushing the log, under "Stopping".
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The program, ready to run: its files are open and its sockets are bound.
pub struct App {
    config: Config,
    spool: Spool,
    service: Arc<CallbackService<Spool>>,
    admin: Arc<Admin>,
    callbacks: Listener,
    operators: Listener,
    control: Option<ControlServer>,
    sinks: Sinks,
    targets: Targets,
}

/// The forwarders, and the handle that stops them.
struct Sinks {
    spool: Spool,
    stop: Stop,
    running: JoinSet<()>,
    handles: Vec<SinkHandle>,
}

impl App {
    /// Opens the spool, binds the sockets and creates the sinks. The forwarders start at once. `certificate` is what
    /// the files of `http.tls` contain.
    ///
    /// # Errors
    /// Fails if the spool cannot be opened or an address cannot be bound.
    pub async fn build(
        config: Config,
        certificate: Option<ServerCertificate>,
    ) -> anyhow::Result<Self> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessMetrics::started_now()));
        let names = sink_names(&config);
        let (spool_config, spool_names) = (config.spool.clone(), names.clone());
        let opened =
            tokio::task::spawn_blocking(move || Spool::open(&spool_config, &spool_names)).await??;
        let Opened { spool, orphans } = opened;
        for (sink, events) in orphans {
            warn!(
                code = "sink_removed",
                sink,
                events,
                "sink is no longer configured, and its cursor pins unconfirmed events in the spool; configure it \
                 again, or run `recall-relay spool forget {sink}` to unpin them"
            );
        }
        warn_of_dead_letters(&spool);
        config.auth.warn_if_unchecked(&config.http.tls);
        config.warn_if_no_upstream();
        let mut sinks = Sinks {
            spool: spool.clone(),
            stop: Stop::default(),
            running: JoinSet::new(),
            handles: Vec::new(),
        };
        let own = registry.sub_registry_with_prefix(admin::PREFIX);
        let auth = Auth::new(&config.sdk_app_ids, config.auth.clone());
        let upstream = Arc::new(Upstream::new(own));
        let service = CallbackService::new(
            config.http.clone(),
            auth,
            spool.clone(),
            Arc::clone(&upstream),
            own,
        );
        let service = Arc::new(service);
        let handshakes = Arc::new(Handshakes::new(&config.http, own));
        handshakes.set(certificate);
        // Bind before the sinks start: if an address is in use, nothing has been published.
        let setup = ConnectionSetup::of_callbacks(&config.http).with_tls(Arc::clone(&handshakes));
        let callbacks = Listener::bind(config.http.listen, config.http.limits(), setup)
            .context("http.listen is not usable")?;
        let setup = ConnectionSetup::plain("admin.listen");
        let operators = Listener::bind(config.admin.listen, config.admin.limits(), setup)
            .context("admin.listen is not usable")?;
        let (targeted, backend) = (Arc::clone(&service), config.upstream.clone());
        tokio::task::spawn_blocking(move || targeted.set_backend(backend.as_ref())).await?;
        callbacks.register(own);
        let targets = Targets {
            service: Arc::clone(&service),
            handshakes: Arc::clone(&handshakes),
            #[cfg(feature = "kafka")]
            kafka: config.kafka.clone().map(watch::Sender::new),
            #[cfg(feature = "rabbitmq")]
            rabbitmq: config.rabbitmq.clone().map(watch::Sender::new),
            successful: Gauge::default(),
        };
        targets.successful.set(1);
        own.register(
            "config_last_reload_successful",
            "1, or 0 if the last reload of the settings failed",
            targets.successful.clone(),
        );
        sinks.start_all(&targets)?;

        let control = ControlServer::bind(control::Target {
            spool: spool.clone(),
            sinks: sinks.handles.clone(),
        });
        let unaccepted = Arc::clone(service.unaccepted());
        let admin = Admin::new(
            spool.clone(),
            sinks.handles.clone(),
            unaccepted,
            upstream,
            registry,
        );
        Ok(Self {
            config,
            spool,
            service,
            admin: Arc::new(admin),
            callbacks,
            operators,
            control,
            sinks,
            targets,
        })
    }

    /// The parts that take new settings while the relay runs.
    #[must_use]
    pub fn targets(&self) -> Targets {
        self.targets.clone()
    }

    /// The address that accepts callbacks.
    #[must_use]
    pub const fn callback_address(&self) -> SocketAddr {
        self.callbacks.address()
    }

    /// The address that serves operators.
    #[must_use]
    pub const fn admin_address(&self) -> SocketAddr {
        self.operators.address()
    }

    /// Runs until `stop` completes, then shuts down gracefully.
    ///
    /// # Errors
    /// Fails if the spool has failed permanently, or if a part of the program ended by itself.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self {
            config,
            spool,
            service,
            admin,
            callbacks,
            operators,
            control,
            mut sinks,
            targets,
        } = self;
        let addresses = (callbacks.address(), operators.address());
        let (receiver, unaccepted) = (Arc::clone(&service), Arc::clone(service.unaccepted()));
        let upstream = Arc::clone(service.upstream());
        let (stop_callbacks, stop_admin) = (CancellationToken::new(), CancellationToken::new());
        let stop_control = CancellationToken::new();
        let mut servers = JoinSet::new();
        servers.spawn(callbacks.serve(service, stop_callbacks.clone()));
        let mut control_server = JoinSet::new();
        if let Some(control) = control {
            control_server.spawn(control.serve(stop_control.clone()));
        }
        let mut admin_server = JoinSet::new();
        let view = Arc::clone(&admin);
        admin_server.spawn(operators.serve(view, stop_admin.clone()));

        // The servers and forwarders return on their own only because of a bug. The futures that never return only log.
        let failure = tokio::select! {
            () = stop => None,
            failed = spool.failed() => Some(anyhow!(failed)),
            never = report_readiness(&config, &spool, addresses) => match never {},
            never = spool.watch() => match never {},
            never = unaccepted.watch() => match never {},
            never = upstream.watch() => match never {},
            never = targets.handshakes.watch() => match never {},
            Some(ended) = servers.join_next() => Some(ended_by_itself("receiver", ended)),
            Some(ended) = sinks.running.join_next() => Some(ended_by_itself("forwarder", ended)),
        };

        // `/readyz` fails first, and callbacks are still accepted for `stop_delay`, so that a load balancer can stop
        // sending them here. Each answer closes its connection.
        admin.stopping();
        receiver.close_connections();
        let failure = if failure.is_some() {
            failure
        } else {
            info!(
                code = "stopping", delay = %config.http.stop_delay,
                "relay is stopping; it still accepts callbacks for the delay (http.stop_delay)"
            );
            tokio::select! {
                () = sleep(config.http.stop_delay.0) => None,
                failed = spool.failed() => Some(anyhow!(failed)),
            }
        };
        let deadline = Instant::now() + *config.drain_timeout;
        stop_callbacks.cancel();
        // A client that is slow to send must not use up the sinks' time. After a failure the timeout is short:
        // each second until the next start is a second of lost callbacks.
        let limit = if failure.is_none() {
            *config.drain_timeout / 2
        } else {
            ANSWER_TIMEOUT
        };
        let _ = timeout(limit, servers.join_next()).await;
        servers.shutdown().await;
        unaccepted.log(true);
        // After a failure, drain nothing: what is not published stays in the spool.
        let deadline = if failure.is_none() {
            deadline
        } else {
            Instant::now()
        };
        tokio::join!(upstream.drain(deadline), sinks.drain(deadline));
        // The spool may have failed during the drain.
        let failed_late = match spool.status().refusing {
            Some(error) if error.is_final() => Some(anyhow!(error)),
            _ => None,
        };
        // Before the spool's lock is released: the next start may bind the socket at once.
        stop_control.cancel();
        while control_server.join_next().await.is_some() {}
        spool.close().await;
        // The listener for operators stops last, so that they can observe the shutdown.
        stop_admin.cancel();
        admin_server.shutdown().await;
        if let Some(error) = failure.or(failed_late) {
            return Err(error);
        }
        info!(code = "stopped", "relay has stopped");
        Ok(())
    }
}

/// Logs when the relay is ready for the first time; if it is not ready at once, why. Never returns.
async fn report_readiness(
    config: &Config,
    spool: &Spool,
    (callbacks, admin): (SocketAddr, SocketAddr),
) -> Infallible {
    let (path, sinks) = (config.spool.path.display(), sink_names(config).join(","));
    if let Some(reason) = spool.status().refusing {
        error!(
            code = "not_ready", %callbacks, %admin, spool = %path, sinks, %reason,
            "relay has started but refuses callbacks with 503, and the vendor does not repeat them; fix the cause"
        );
        while spool.status().refusing.is_some() {
            sleep(READY_CHECK).await;
        }
    }
    info!(
        code = "ready", %callbacks, %admin, spool = %path, sinks,
        "relay is ready and accepts callbacks"
    );
    pending().await
}

/// Dead letters stay in the spool until somebody removes them.
fn warn_of_dead_letters(spool: &Spool) {
    let dead_letters = spool.dead_letters();
    if dead_letters > 0 {
        warn!(
            code = "dead_letters_waiting",
            dead_letters,
            "the spool holds events that a broker refused even as dead letters; no subscriber receives them; list them \
             with `recall-relay spool dead-letters list`"
        );
    }
}

fn ended_by_itself(part: &str, ended: Result<(), tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(()) => anyhow!("the {part} ended unexpectedly; report this as a bug"),
        Err(error) => anyhow!(error).context(format!("the {part} failed")),
    }
}

/// The configured sinks; standard output if there are none.
#[must_use]
pub fn sink_names(config: &Config) -> Vec<&'static str> {
    let mut names = Vec::new();
    #[cfg(feature = "kafka")]
    if config.kafka.is_some() {
        names.push(crate::sink::kafka::NAME);
    }
    #[cfg(feature = "rabbitmq")]
    if config.rabbitmq.is_some() {
        names.push(crate::sink::rabbitmq::NAME);
    }
    // Otherwise unused in a build without brokers.
    let _ = config;
    if names.is_empty() {
        names.push(stdout::NAME);
    }
    names
}

impl Sinks {
    fn start_all(&mut self, targets: &Targets) -> anyhow::Result<()> {
        #[cfg(feature = "kafka")]
        if let Some(settings) = &targets.kafka {
            let spool_id = self.spool.id();
            let settings = settings.subscribe();
            self.start(crate::sink::kafka::Kafka::new(settings, spool_id))?;
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
        let cursor = self.spool.cursor(name);
        let cursor = cursor.with_context(|| format!("spool has no cursor of sink {name}"))?;
        let handle = SinkHandle::new(name, cursor);
        let forwarder = Forwarder::new(sink, self.spool.clone(), &handle, self.stop.clone());
        self.handles.push(handle);
        self.running.spawn(forwarder.run());
        Ok(())
    }

    /// Lets the forwarders publish the remaining events until the deadline.
    async fn drain(&mut self, deadline: Instant) {
        self.stop.drain.cancel();
        let all = async { while self.running.join_next().await.is_some() {} };
        if timeout_at(deadline, all).await.is_err() {
            self.stop.now.cancel();
            let all = async { while self.running.join_next().await.is_some() {} };
            let _ = timeout(CLOSE_TIMEOUT, all).await;
        }
        self.running.shutdown().await;
        let last = self.spool.status().last.0;
        for sink in &self.handles {
            let left = last.saturating_sub(sink.cursor.position().0);
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
