//! `recall-relay run`: runs the relay.

use std::process::{self, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{Level, error, info, warn};

use super::{open_files, passed_sockets};
use crate::admin::SettingsInForce;
use crate::app::{App, PassedSockets};
use crate::config::{self, ConfigError, Loaded};
use crate::reload::{Load, Reloader};
use crate::telemetry::{self, Log, chain};

/// How long blocking tasks may run after the relay has stopped.
const BLOCKING_TIMEOUT: Duration = Duration::from_secs(1);

/// The same, if callbacks wait in a passed socket for the next start.
const PASSED_BLOCKING_TIMEOUT: Duration = Duration::from_millis(100);

/// How long the log's thread has to write the last line.
const LAST_LINE: Duration = Duration::from_millis(50);

/// Runs until SIGTERM or SIGINT. A second signal ends the process at once. SIGHUP reloads the settings. Errors are
/// logged: the log may be read by a program, even if the settings are wrong.
pub(super) fn run(
    load: impl Fn() -> Result<Loaded, ConfigError> + Send + Sync + 'static,
) -> ExitCode {
    // First, because it changes the environment: no other thread may read that at the same time.
    let sockets = passed_sockets::take();
    let addresses = sockets.as_ref().map(PassedSockets::addresses);
    let (callbacks, admin) = addresses.unwrap_or_default();
    let load: Load = Arc::new(move || {
        let mut loaded = load()?;
        loaded.use_sockets(callbacks, admin);
        Ok(loaded)
    });
    let loaded = load();
    let settings = match &loaded {
        Ok(loaded) => loaded.config.log.clone(),
        Err(_) => config::log_for_errors(std::env::vars_os()),
    };
    let log = match telemetry::start(&settings) {
        Ok(log) => log,
        Err(error) => {
            super::print_error(&error);
            return ExitCode::from(super::exit_code(&error));
        }
    };
    let mut is_running = false;
    let outcome = loaded
        .map_err(anyhow::Error::from)
        .and_then(|loaded| run_relay(load, loaded, sockets?, &log, &mut is_running));
    let code = match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let exit_code = super::exit_code(&error);
            report(&error, exit_code, is_running);
            ExitCode::from(exit_code)
        }
    };
    drop(log);
    code
}

/// Logs why the relay ends.
fn report(error: &anyhow::Error, exit_code: u8, was_running: bool) {
    if !tracing::enabled!(Level::ERROR) {
        // A filter hides all errors, but nobody should have to guess why the relay has ended.
        super::print_error(error);
    } else if was_running {
        error!(
            code = "relay_failed",
            reason = chain(error.as_ref()),
            exit_code,
            "relay exits after a failure; fix the cause, and restart it"
        );
    } else {
        for reason in config::reasons(error) {
            error!(
                code = "start_failed",
                reason, exit_code, "relay could not start; fix the cause"
            );
        }
    }
}

/// `is_running` is set when the start has succeeded.
fn run_relay(
    load: Load,
    loaded: Loaded,
    sockets: PassedSockets,
    log: &Log,
    is_running: &mut bool,
) -> anyhow::Result<()> {
    // A copy: a reload compares with what the settings say.
    let mut config = loaded.config.clone();
    let to_backend = config
        .upstream
        .as_ref()
        .map_or(0, |upstream| upstream.max_in_flight);
    let connections = open_files::raise_nofile_limit(config.http.max_connections, to_backend);
    config.http.max_connections = connections;
    let certificate = loaded.server_certificate()?;
    let runtime = super::runtime()?;
    let blocking_timeout = if sockets.callbacks.is_some() {
        PASSED_BLOCKING_TIMEOUT
    } else {
        BLOCKING_TIMEOUT
    };
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("could not install a handler for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("could not install a handler for SIGINT")?;
        let hangup = signal(SignalKind::hangup()).context("could not install a handler for SIGHUP")?;
        let settings = SettingsInForce::default();
        settings.set(loaded.in_force(&loaded.config));
        let app = App::build(config, certificate, settings, log.problems().clone(), sockets).await?;
        let reloader = Reloader::new(load, loaded, log, app.targets());
        *is_running = true;
        let stop = CancellationToken::new();
        let mut signals = JoinSet::new();
        let stopping = stop.clone();
        signals.spawn(async move {
            let signal = next(&mut terminate, &mut interrupt).await;
            info!(
                code = "signal_received",
                signal, "signal received: the relay begins to stop"
            );
            stopping.cancel();
            let signal = next(&mut terminate, &mut interrupt).await;
            warn!(
                code = "stop_forced",
                signal,
                "second signal received: exiting at once; open requests are not answered, and unconfirmed events stay \
                 in the spool"
            );
            // Another thread writes the line.
            sleep(LAST_LINE).await;
            end_at_once();
        });
        tokio::select! {
            outcome = app.run(stop.cancelled()) => outcome,
            never = reloader.run(hangup) => match never {},
        }
    });
    // A blocking task may be left, such as a client library's DNS lookup.
    runtime.shutdown_timeout(blocking_timeout);
    outcome
}

#[expect(clippy::disallowed_methods, reason = "the operator asked twice")]
fn end_at_once() {
    process::exit(1);
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
