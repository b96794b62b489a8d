//! Builds the program from its settings, runs it until a stop is requested, and stops its parts in the order in which
//! data flows through them.

mod sinks;

use std::convert::Infallible;
use std::future::{Future, pending};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::sinks::Sinks;
use crate::admin::{self, Admin, Observed, ProcessMetrics, SettingsInForce};
use crate::config::Config;
use crate::control::{self, ControlServer};
use crate::receiver::{
    AnswerAfter, Auth, CallbackService, ConnectionSetup, Handshakes, Listener, Storage,
};
use crate::reload::Targets;
use crate::setting::ServerCertificate;
use crate::spool::{Opened, Spool};
use crate::telemetry::RecentProblems;
use crate::upstream::Upstream;

/// How often a relay that has started checks whether it is ready.
const READY_CHECK: Duration = Duration::from_millis(200);

/// How long pending answers may take to reach their clients after a failure.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// How long open requests may take if callbacks wait in a passed socket for the next start. The vendor waits 2 s.
const PASSED_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long brokers may then take to confirm what was sent to them.
const PASSED_CONFIRM_TIMEOUT: Duration = Duration::from_millis(200);

/// How long sessions may then take to close.
const PASSED_CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// How long sessions may take to close after the deadline of a drain. docs/how-to/deploy.md adds up this timeout and
/// those for closing the spool, shutting down the runtime and flushing the log, under "Stopping".
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Listening sockets of the process that has started the relay. It keeps them open, so connections wait in them until
/// the next start.
#[derive(Debug, Default)]
pub struct PassedSockets {
    /// For callbacks, instead of `http.listen`.
    pub callbacks: Option<TcpListener>,
    /// For health and metrics, instead of `admin.listen`.
    pub admin: Option<TcpListener>,
}

impl PassedSockets {
    /// The addresses of the sockets for callbacks and for health and metrics.
    #[must_use]
    pub fn addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        let address = |socket: &Option<TcpListener>| socket.as_ref()?.local_addr().ok();
        (address(&self.callbacks), address(&self.admin))
    }
}

/// The program, ready to run: its files are open and its sockets are bound.
pub struct App {
    config: Config,
    spool: Spool,
    service: Arc<CallbackService<Storage>>,
    admin: Arc<Admin>,
    callbacks: Listener,
    operators: Listener,
    control: Option<ControlServer>,
    sinks: Sinks,
    targets: Targets,
}

impl App {
    /// Opens the spool, binds the sockets and creates the sinks. The forwarders start at once. `certificate` is what
    /// the files of `http.tls` contain. `settings` and `problems` are shown to operators. A passed
    /// socket takes the place of an address to bind.
    ///
    /// # Errors
    /// Fails if the spool cannot be opened or an address cannot be bound.
    pub async fn build(
        config: Config,
        certificate: Option<ServerCertificate>,
        settings: SettingsInForce,
        problems: RecentProblems,
        sockets: PassedSockets,
    ) -> anyhow::Result<Self> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessMetrics::started_now()));
        let names = config.sink_names();
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
        let mut sinks = Sinks::new(spool.clone());
        if config.answer_after == AnswerAfter::Broker {
            sinks.let_answers_wait(&names, *config.answer_deadline)?;
        }
        let own = registry.sub_registry_with_prefix(admin::PREFIX);
        let auth = Auth::new(&config.sdk_app_ids, config.auth.clone());
        let upstream = Arc::new(Upstream::new(own));
        let service = CallbackService::new(
            config.http.clone(),
            auth,
            Storage::new(spool.clone(), sinks.confirms.clone()),
            Arc::clone(&upstream),
            own,
        );
        let service = Arc::new(service);
        if !sinks.confirms.is_empty() {
            service.init_broker();
        }
        let handshakes = Arc::new(Handshakes::new(&config.http, own));
        handshakes.set(certificate);
        // Bind before the sinks start: if an address is in use, nothing has been published.
        let setup = ConnectionSetup::of_callbacks(&config.http).with_tls(Arc::clone(&handshakes));
        let (http, operators) = (&config.http, &config.admin);
        let callbacks = Listener::bind(http.listen, sockets.callbacks, http.limits(), setup)
            .context("http.listen is not usable")?;
        let setup = ConnectionSetup::plain("admin.listen");
        let operators = Listener::bind(operators.listen, sockets.admin, operators.limits(), setup)
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
            settings: settings.clone(),
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
        let observed = Observed {
            spool: spool.clone(),
            sinks: sinks.handles.clone(),
            answers: service.answers(),
            unaccepted: Arc::clone(service.unaccepted()),
            handshakes,
            upstream,
            problems,
            settings,
        };
        let admin = Admin::new(observed, registry);
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
        let is_passed = callbacks.is_passed();
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
            never = admin.watch() => match never {},
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
        for confirms in &sinks.confirms {
            confirms.stop_waiting();
        }
        // A client that is slow to send must not use up the sinks' time. After a failure the timeout is short:
        // each second until the next start is a second of lost callbacks. With a passed socket they are not lost, but
        // wait for the next start.
        let limit = match failure {
            Some(_) => ANSWER_TIMEOUT,
            None if is_passed => PASSED_ANSWER_TIMEOUT,
            None => *config.drain_timeout / 2,
        };
        let _ = timeout(limit, servers.join_next()).await;
        servers.shutdown().await;
        unaccepted.log(true);
        // After a failure, drain nothing: what is not published stays in the spool. With a passed socket, only wait for
        // confirmations, without which the next start publishes events a second time.
        let deadline = match failure {
            Some(_) => Instant::now(),
            None if is_passed => Instant::now() + PASSED_CONFIRM_TIMEOUT,
            None => deadline,
        };
        let close_timeout = if is_passed {
            PASSED_CLOSE_TIMEOUT
        } else {
            CLOSE_TIMEOUT
        };
        tokio::join!(
            upstream.drain(deadline),
            sinks.drain(deadline, close_timeout)
        );
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
    let (path, sinks) = (config.spool.path.display(), config.sink_names().join(","));
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
