//! Reloads the settings while the relay runs: on SIGHUP, and when the content of a file that a setting names changes.
//!
//! The applications, authentication, the listener's certificate, the upstream, the log's filter, and the connections to
//! the brokers, with their credentials and certificates, take effect; other changes are logged as waiting for a
//! restart. If anything is wrong, nothing changes.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::signal::unix::Signal;
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::admin::SettingsInForce;
use crate::config::{self, Config, ConfigError, FileDigests, Loaded};
use crate::receiver::{Auth, CallbackService, Handshakes, Storage};
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
use crate::sink;
use crate::telemetry::Log;

/// How often the files are read. A change takes effect after two readings with the same content: a certificate and its
/// key are rarely replaced at the same moment.
const CHECK_EVERY: Duration = Duration::from_secs(3);

/// The parts of a running relay that take new settings.
#[derive(Debug, Clone)]
pub struct Targets {
    pub(crate) service: Arc<CallbackService<Storage>>,
    pub(crate) handshakes: Arc<Handshakes>,
    #[cfg(feature = "kafka")]
    pub(crate) kafka: Option<watch::Sender<sink::kafka::Config>>,
    #[cfg(feature = "rabbitmq")]
    pub(crate) rabbitmq: Option<watch::Sender<sink::rabbitmq::Config>>,
    /// What operators see.
    pub(crate) settings: SettingsInForce,
    /// 1, or 0 if the last reload failed.
    pub(crate) successful: Gauge,
}

/// Loads the settings again from the same sources. Blocks.
pub type Load = Arc<dyn Fn() -> Result<Loaded, ConfigError> + Send + Sync>;

/// Reloads the settings of a running relay.
#[expect(missing_debug_implementations, reason = "a function has none")]
pub struct Reloader<'a> {
    load: Load,
    /// The settings in effect.
    config: Config,
    /// The files that they name, as they were read.
    digests: FileDigests,
    log: &'a Log,
    targets: Targets,
}

impl<'a> Reloader<'a> {
    /// A reloader that calls `load`, whose outcome at the start was `loaded`.
    #[must_use]
    pub fn new(load: Load, loaded: Loaded, log: &'a Log, targets: Targets) -> Self {
        Self {
            load,
            config: loaded.config,
            digests: loaded.digests,
            log,
            targets,
        }
    }

    /// Reloads on each `hangup` and each change of a file.
    pub async fn run(mut self, mut hangup: Signal) -> Infallible {
        let mut seen = self.digests.clone();
        loop {
            let cause = tokio::select! {
                Some(()) = hangup.recv() => "SIGHUP".to_owned(),
                files = changed(&seen) => files,
            };
            seen = read_again(&seen).await;
            match self.reload(&cause).await {
                Ok(()) => {
                    // Other files may be named now.
                    seen = self.digests.clone();
                    self.targets.successful.set(1);
                }
                Err(failure) => {
                    self.targets.successful.set(0);
                    let reason = config::reasons(&failure).join("; ");
                    error!(
                        code = "reload_failed",
                        cause,
                        reason,
                        "reload failed, and the current settings stay in effect; correct the new ones, then send SIGHUP \
                         (not needed for a corrected secret or certificate)"
                    );
                }
            }
        }
    }

    async fn reload(&mut self, cause: &str) -> anyhow::Result<()> {
        let load = Arc::clone(&self.load);
        let loaded = spawn_blocking(move || {
            let loaded = load()?;
            loaded.check_certificates()?;
            let certificate = loaded.server_certificate()?;
            Ok::<_, ConfigError>((loaded, certificate))
        });
        let (loaded, certificate) = loaded.await??;
        let config = self.config.reloaded(&loaded.config);
        let settings = loaded.in_force(&config);
        let Loaded {
            config: new,
            digests,
            ..
        } = loaded;
        let have_changed = |files: &[PathBuf]| {
            let changed = digests.changed_since(&self.digests);
            files.iter().any(|file| changed.contains(&file.as_path()))
        };
        let mut changed = Vec::new();

        if config.log.filter != self.config.log.filter {
            self.log.set_filter(&config.log.filter);
            changed.push("log.filter");
        }
        if config.sdk_app_ids != self.config.sdk_app_ids || config.auth != self.config.auth {
            self.targets
                .service
                .set_auth(Auth::new(&config.sdk_app_ids, config.auth.clone()));
            changed.push("sdk_app_ids and auth");
        }
        if config.auth != self.config.auth || config.http.tls != self.config.http.tls {
            config.auth.warn_if_unchecked(&config.http.tls);
        }
        if config.http.tls != self.config.http.tls || have_changed(&config.http.tls.files()) {
            self.targets.handshakes.set(certificate);
            changed.push("http.tls");
        }
        let certificates = (config.upstream.as_ref()).map(|upstream| upstream.tls.files());
        if config.upstream != self.config.upstream
            || have_changed(&certificates.unwrap_or_default())
        {
            let (service, upstream) = (Arc::clone(&self.targets.service), config.upstream.clone());
            spawn_blocking(move || service.set_backend(upstream.as_ref())).await?;
            config.warn_if_no_upstream();
            changed.push("upstream");
        }
        #[cfg(feature = "kafka")]
        if let (Some(kafka), Some(target)) = (&config.kafka, &self.targets.kafka)
            && (config.kafka != self.config.kafka || have_changed(&kafka.files()))
        {
            target.send_replace(kafka.clone());
            changed.push("connection to Kafka");
        }
        #[cfg(feature = "rabbitmq")]
        if let (Some(rabbitmq), Some(target)) = (&config.rabbitmq, &self.targets.rabbitmq)
            && (config.rabbitmq != self.config.rabbitmq || have_changed(&rabbitmq.tls.files()))
        {
            target.send_replace(rabbitmq.clone());
            changed.push("connection to RabbitMQ");
        }
        if changed.is_empty() {
            changed.push("nothing");
        }
        let changed = changed.join(", ");
        info!(code = "reloaded", cause, changed, "settings were reloaded");
        let waiting = Vec::from_iter(config.differences(&new)).join(", ");
        if !waiting.is_empty() {
            warn!(
                code = "restart_needed",
                settings = waiting,
                "changed settings take effect only after a restart; restart the relay"
            );
        }
        self.targets.settings.set(settings);
        self.config = config;
        self.digests = digests;
        Ok(())
    }
}

/// Waits until files have other digests than `known`, and the same for two readings. Returns what has changed.
async fn changed(known: &FileDigests) -> String {
    let mut before = known.clone();
    loop {
        sleep(CHECK_EVERY).await;
        let now = read_again(known).await;
        if now != *known && now == before {
            let changed = now.changed_since(known);
            let changed: Vec<String> = changed
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            return format!("change of {}", changed.join(", "));
        }
        before = now;
    }
}

async fn read_again(known: &FileDigests) -> FileDigests {
    let known = known.clone();
    match spawn_blocking(move || known.read_again()).await {
        Ok(digests) => digests,
        // The runtime is shutting down.
        Err(_) => std::future::pending().await,
    }
}
