//! `recall-relay run`: runs the relay.

use std::process;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::open_files;
use crate::app::App;
use crate::config::Config;
use crate::telemetry::{self, chain};

/// How long blocking tasks may run after the relay has stopped.
const BLOCKING_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the log's thread has to write the last line.
const LAST_LINE: Duration = Duration::from_millis(50);

/// Runs until SIGTERM or SIGINT. A second signal ends the process at once.
pub(super) fn run(config: Config) -> anyhow::Result<()> {
    let _log = telemetry::start(&config.log)?;
    open_files::raise_nofile_limit(config.http.max_connections);
    let runtime = super::runtime()?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("could not install a handler for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("could not install a handler for SIGINT")?;
        let app = App::build(config).await?;
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
        let outcome = app.run(stop.cancelled()).await;
        if let Err(failure) = &outcome {
            let reason = chain(failure.as_ref());
            error!(
                code = "relay_failed",
                reason, "relay ends with exit code 1 after a failure; fix the cause, and restart it"
            );
        }
        outcome
    });
    // A blocking task may be left, such as a client library's DNS lookup.
    runtime.shutdown_timeout(BLOCKING_TIMEOUT);
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
