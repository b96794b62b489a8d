//! `recall-relay check`: looks at everything that the relay needs, and says what to do.
//!
//! It changes nothing: it leaves no folder or file behind, creates no topic, exchange or queue, and publishes nothing.
//! What only a change or an event would show is reported as untried. The areas are checked concurrently, and their
//! lines are printed in a fixed order, each as soon as possible.

mod callback_url;
mod certificates;
mod clock;
mod configuration;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
mod reach;
mod relay;
mod report;
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
mod servers;
mod spool;
mod tokens;
mod upstream;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueHint;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use self::report::{Area, Finding, Report};
use super::send::Endpoint;
use super::{BAD_CONFIGURATION, FAILED};
use crate::config::{ConfigError, Loaded};

/// How long all areas together may take. Each of their steps has a shorter limit of its own.
const LIMIT: Duration = Duration::from_secs(120);

/// How long the areas that have not ended may take to close their connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Check the settings and everything that the relay needs: disk, clock, certificates, brokers, backend
///
/// Changes nothing and publishes nothing, beside a running relay or without one. Each line is ok, a warning, failed or
/// untried, with what to do. The exit code is 0 unless a line failed.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Callback URL, as the vendor's console has it: sends the console's probe there
    #[arg(long)]
    url: Option<Endpoint>,

    /// For --url: PEM file with authorities to trust in addition to the system's
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "url")]
    ca: Option<PathBuf>,

    /// Print each line as JSON
    #[arg(long)]
    json: bool,
}

/// Prints what it finds.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn run(
    args: CheckArgs,
    loaded: Result<Loaded, ConfigError>,
) -> anyhow::Result<ExitCode> {
    let mut report = Report::new(args.json);
    let runtime = super::runtime()?;
    let outcome = runtime.block_on(async {
        match loaded {
            Ok(loaded) => {
                check_all(args, Arc::new(loaded), &mut report).await?;
                anyhow::Ok(FAILED)
            }
            Err(error) => {
                let mut areas = Areas::default();
                areas.spawn("configuration", |area| configuration::unusable(error, area));
                areas.finish(&mut report).await?;
                Ok(BAD_CONFIGURATION)
            }
        }
    });
    // A name may still be being resolved, or a disk may hang; neither can be interrupted.
    runtime.shutdown_timeout(Duration::ZERO);
    let code_if_failed = outcome?;
    Ok(if report.finish()? {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(code_if_failed)
    })
}

async fn check_all(
    args: CheckArgs,
    loaded: Arc<Loaded>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut areas = Areas::default();
    let CheckArgs { url, ca, .. } = args;
    areas.add("configuration", &loaded, configuration::check);
    areas.add("relay", &loaded, relay::check);
    areas.add("spool", &loaded, spool::check);
    areas.add("clock", &loaded, clock::check);
    areas.add("certificates", &loaded, certificates::check);
    areas.add("tokens", &loaded, tokens::check);
    #[cfg(feature = "kafka")]
    if loaded.config.kafka.is_some() {
        areas.add("kafka", &loaded, kafka::check);
    }
    #[cfg(feature = "rabbitmq")]
    if loaded.config.rabbitmq.is_some() {
        areas.add("rabbitmq", &loaded, rabbitmq::check);
    }
    areas.add("upstream", &loaded, upstream::check);
    areas.add("callback_url", &loaded, async move |loaded, area| {
        callback_url::check(loaded, url, ca, area).await;
    });
    areas.finish(report).await
}

/// The areas, in the order in which they are printed.
#[derive(Debug, Default)]
struct Areas {
    lines: Vec<(&'static str, mpsc::Receiver<Finding>)>,
    tasks: JoinSet<()>,
}

impl Areas {
    fn add<F>(
        &mut self,
        name: &'static str,
        loaded: &Arc<Loaded>,
        check: impl FnOnce(Arc<Loaded>, Area) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let loaded = Arc::clone(loaded);
        self.spawn(name, move |area| check(loaded, area));
    }

    fn spawn<F>(&mut self, name: &'static str, check: impl FnOnce(Area) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (area, lines) = Area::new(name);
        self.tasks.spawn(check(area));
        self.lines.push((name, lines));
    }

    /// Prints the lines of all areas, in order, and waits until they have ended.
    async fn finish(self, report: &mut Report) -> anyhow::Result<()> {
        let Self { lines, mut tasks } = self;
        let deadline = Instant::now() + LIMIT;
        let printed = print_all(lines, deadline, report).await;
        // Even if nobody reads any more: the end of the process must not interrupt the clients of brokers.
        let joining = async {
            while let Some(ended) = tasks.join_next().await {
                ended.context("a check has failed itself")?;
            }
            anyhow::Ok(())
        };
        // What has not ended by now is reported already.
        let joined = timeout_at(deadline + CLOSE_TIMEOUT, joining).await;
        joined.unwrap_or(Ok(()))?;
        printed
    }
}

/// Prints the lines of all areas, in order, each as soon as possible. Reports each area that has not ended by then.
async fn print_all(
    areas: Vec<(&'static str, mpsc::Receiver<Finding>)>,
    deadline: Instant,
    report: &mut Report,
) -> anyhow::Result<()> {
    for (name, mut lines) in areas {
        loop {
            match timeout_at(deadline, lines.recv()).await {
                Ok(Some(finding)) => report.print(&finding)?,
                Ok(None) => break,
                Err(_) => {
                    report.print(&Finding::not_ended(name, LIMIT))?;
                    break;
                }
            }
        }
    }
    Ok(())
}
