//! The spool: its file, its folder, and its disk.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;

use super::report::{Area, DISK_TIMEOUT};
use crate::callback::VENDOR_TIMEOUT;
use crate::cli::sinks::SinkPositions;
use crate::config::{Config, Loaded};
use crate::spool::{Inspector, OpenError, SpaceLimit, SpoolFolder, SyncLatency};
use crate::telemetry::chain;

/// How long syncs are measured.
const MEASURE_FOR: Duration = Duration::from_secs(1);

/// How long to wait for that: a disk may hang.
const SYNC_TIMEOUT: Duration = Duration::from_secs(4);

/// How long reading the file may take: a relay that runs on it has 10 s to answer.
const READ_TIMEOUT: Duration = Duration::from_secs(12);

/// With slower syncs, the answers of a burst of callbacks are late.
const SLOW: Duration = Duration::from_millis(200);

pub(super) async fn check(loaded: Arc<Loaded>, area: Area) {
    let path = loaded.config.spool.path.display();
    let config = loaded.config.clone();
    let step = format!("looking at the folder and the file system of {path}");
    let looked = area.blocking("folder", &step, DISK_TIMEOUT, move || {
        let folder = SpoolFolder::find(&config.spool);
        let network = folder.as_ref().ok().map(SpoolFolder::network_file_system);
        (folder, network)
    });
    let Some((folder, network)) = looked.await else {
        return;
    };
    let config = loaded.config.clone();
    let step = format!("reading {path}");
    let opened = area.blocking("file", &step, READ_TIMEOUT, move || open(&config));
    let Some(opened) = opened.await else {
        return;
    };
    let positions = report_file(&loaded.config, &area, &folder, opened).await;
    let folder = match folder {
        Ok(folder) => folder,
        Err(error) => {
            let action = "set spool.path to a file in a folder that the relay's user may write to";
            return area.failed("folder", error.to_string(), action).await;
        }
    };
    match network.unwrap_or(Ok(None)) {
        Ok(None) => area.ok("file system", "not a network file system").await,
        Ok(Some(name)) => {
            let text = format!("{name}: SQLite's WAL does not work on a network file system");
            let action = "set spool.path to a file on a local disk";
            area.failed("file system", text, action).await;
        }
        Err(error) => {
            let text = format!("the system does not show its type: {error}");
            area.untried("file system", text).await;
        }
    }
    report_space(&loaded.config, &area, &folder, positions).await;
    let step = format!("syncing a file in {}", folder.existing.display());
    let measured = area.blocking("sync", &step, SYNC_TIMEOUT, move || {
        folder.sync_latency(MEASURE_FOR)
    });
    match measured.await {
        Some(Ok(latency)) => report_latency(&area, latency).await,
        Some(Err(error)) => {
            let text =
                format!("a file in the spool's folder cannot be written and synced: {error}");
            let action = "free space, or repair the disk or the folder's rights";
            area.failed("sync", text, action).await;
        }
        None => {}
    }
}

/// Opens the spool for reading.
fn open(config: &Config) -> Result<SinkPositions, anyhow::Error> {
    let inspector = Inspector::open(&config.spool)?;
    SinkPositions::read(&inspector, config)
}

/// Reports what the file holds. Returns that.
async fn report_file(
    config: &Config,
    area: &Area,
    folder: &std::io::Result<SpoolFolder>,
    opened: Result<SinkPositions, anyhow::Error>,
) -> Option<SinkPositions> {
    let path = config.spool.path.display();
    let positions = match opened {
        Ok(positions) => positions,
        Err(error) => {
            let is_missing = matches!(error.downcast_ref(), Some(OpenError::Missing(_)));
            match folder {
                // That is reported, and is why there is no file.
                Err(_) => {}
                Ok(folder) if is_missing => {
                    let there = folder.existing.display();
                    let text = if folder.is_there {
                        format!("there is no spool {path} yet; {there} is writable")
                    } else {
                        format!(
                            "there is no spool {path} yet; its folder can be created in {there}"
                        )
                    };
                    area.ok("file", text).await;
                }
                // The text says what to do.
                Ok(_) => area.failed("file", chain(error.as_ref()), "").await,
            }
            return None;
        }
    };
    report_contents(&path.to_string(), area, &positions).await;
    Some(positions)
}

/// Reports what the file holds, and what needs attention in it.
async fn report_contents(path: &str, area: &Area, positions: &SinkPositions) {
    let overview = &positions.overview;
    let text = format!(
        "{path} can be read and has the format of this version; it keeps {} events",
        overview.kept()
    );
    area.ok("file", text).await;
    let lost = overview.lost_events();
    if lost > 0 {
        let text =
            format!("damage has lost {lost} events; `recall-relay spool status` has their numbers");
        area.warning("damage", text, "check the disk").await;
    }
    for file in &overview.quarantined {
        let text = format!("{} is a damaged file that was replaced", file.display());
        let action = "see docs/how-to/runbook.md, then remove it";
        area.warning("damage", text, action).await;
    }
    for (sink, count) in &overview.dead_letters {
        let text = format!("{count} dead letters of {sink} are only in the spool");
        let action = "see `recall-relay spool dead-letters list`";
        area.warning("dead letters", text, action).await;
    }
    let removed = positions
        .sinks
        .iter()
        .filter(|sink| !sink.is_configured && sink.pins);
    for sink in removed {
        let name = &sink.name;
        let text = format!("{name} is not configured any more, and events are kept for it");
        let action = format!("configure it again, or run `recall-relay spool forget {name}`");
        area.warning("sinks", text, action).await;
    }
    let damaged = positions.sinks.iter().filter(|sink| sink.is_damaged);
    for sink in damaged {
        let text = format!(
            "the cursor of {} is damaged; the next start publishes every kept event again",
            sink.name
        );
        area.warning("sinks", text, "check the disk").await;
    }
}

async fn report_space(
    config: &Config,
    area: &Area,
    folder: &SpoolFolder,
    positions: Option<SinkPositions>,
) {
    let (measured, settings) = (folder.clone(), config.spool.clone());
    let step = format!("asking for the free space of {}", folder.existing.display());
    let space = area.blocking("space", &step, DISK_TIMEOUT, move || {
        let file = positions.as_ref();
        let file = file.map(|positions| (&positions.overview, positions.forwarded()));
        measured.space(&settings, file)
    });
    let Some(space) = space.await else {
        return;
    };
    let (reserve, max_bytes) = (config.spool.reserve, config.spool.max_bytes);
    let size = |bytes| ByteSize(bytes).display().iec().to_string();
    let free = space.free_disk_bytes.map_or("?".to_owned(), size);
    let disk =
        format!("the disk has {free} free, of which {reserve} are kept free (spool.reserve)");
    match space.limit {
        SpaceLimit::MaxBytes => {
            let text = format!("spool.max_bytes ({max_bytes}) fits: {disk}");
            area.ok("space", text).await;
        }
        SpaceLimit::MaxBytesNearlyReached => {
            let (percent, more) = (space.percent, size(space.bytes));
            let text = format!(
                "unconfirmed events and dead letters take {percent} % of spool.max_bytes ({max_bytes}); {more} more fit, \
                 then callbacks are refused"
            );
            let action = "repair the sink that is down, or raise spool.max_bytes";
            area.warning("space", text, action).await;
        }
        SpaceLimit::MaxBytesReached => {
            let text = format!(
                "unconfirmed events and dead letters have reached spool.max_bytes ({max_bytes}), and callbacks are refused"
            );
            let action = "repair the sink that is down, or raise spool.max_bytes";
            area.failed("space", text, action).await;
        }
        SpaceLimit::Disk => {
            let more = size(space.bytes);
            let text = format!(
                "the disk is full after {more} more, before spool.max_bytes ({max_bytes}) is reached: {disk}"
            );
            let action = "free disk space, or lower spool.max_bytes";
            area.warning("space", text, action).await;
        }
        SpaceLimit::DiskIsFull => {
            let text = format!("the disk is full, and callbacks are refused: {disk}");
            let action = "free disk space, or lower spool.reserve";
            area.failed("space", text, action).await;
        }
    }
}

async fn report_latency(area: &Area, latency: SyncLatency) {
    let action = "use a faster disk, local or a block volume; see docs/explanation/performance.md";
    let SyncLatency {
        syncs,
        median,
        longest,
    } = latency;
    let text = format!("{syncs} syncs, median {median:.1?}, longest {longest:.1?}");
    // Each answer waits for a sync.
    if longest >= VENDOR_TIMEOUT {
        let text = format!("{text}: the vendor waits 2 s for an answer, which waits for a sync");
        area.failed("sync", text, action).await;
    } else if longest >= SLOW {
        let text =
            format!("{text}: the vendor waits 2 s for an answer, which may wait for several syncs");
        area.warning("sync", text, action).await;
    } else {
        area.ok("sync", text).await;
    }
}
