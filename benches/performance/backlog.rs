//! A spool with unpublished events: created once, copied for each use.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use recall_relay::event::{Client, Conversation, Event, Recalled, RecalledMessage, UnixMillis};
use recall_relay::setting::{Period, Size};
use recall_relay::spool::{self, Spool};
use tempfile::TempDir;

use super::rig::Setup;

/// The conversations of a backlog.
pub const CONVERSATIONS: u64 = 10_000;

/// Concurrent appends while a backlog is created.
const CONCURRENT_APPENDS: usize = 4000;

/// The backlogs created so far, by size.
pub struct Backlogs {
    folder: PathBuf,
    created: BTreeMap<u64, TempDir>,
}

impl Backlogs {
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            created: BTreeMap::new(),
        }
    }

    /// Copies a backlog of `events` events to the spool path of a setup.
    pub fn copy(&mut self, events: u64, setup: &Setup) {
        let folder = &self.folder;
        let backlog = self
            .created
            .entry(events)
            .or_insert_with(|| create(folder, events));
        let to = setup.spool();
        let to = to.parent().expect("the spool path has no folder");
        fs::create_dir_all(to).expect("cannot create the spool folder");
        for entry in fs::read_dir(backlog.path()).expect("cannot list the backlog") {
            let entry = entry.expect("cannot list the backlog");
            if !entry.file_name().to_string_lossy().ends_with(".lock") {
                let to = to.join(entry.file_name());
                fs::copy(entry.path(), &to).expect("cannot copy the backlog");
                // Otherwise it would be written back during a measurement.
                File::open(to)
                    .and_then(|it| it.sync_all())
                    .expect("cannot sync the copy");
            }
        }
    }
}

fn create(folder: &Path, events: u64) -> TempDir {
    let folder = TempDir::new_in(folder).expect("cannot create a folder");
    let config = spool::Config {
        path: folder.path().join("spool.db"),
        max_bytes: Size(64 << 30),
        reserve: Size(0),
        // No sink pins the events.
        retention: Period(Duration::from_secs(24 * 60 * 60)),
        max_waiting: 2 * CONCURRENT_APPENDS,
        ..spool::Config::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("cannot start a runtime").block_on(async {
        let spool = Spool::open(&config, &[])
            .expect("cannot create a spool")
            .spool;
        let appends = stream::iter(0..events).map(|number| spool.append(event(number)));
        let mut appended = appends.buffer_unordered(CONCURRENT_APPENDS);
        while let Some(appended) = appended.next().await {
            appended.expect("cannot append an event");
        }
        drop(appended);
        spool.close().await;
    });
    folder
}

/// An event of a backlog: as long as those of `callbacks.lua`, with the same bytes in every run.
pub fn event(number: u64) -> Event {
    let group = format!("@TGS#2{}", 10_000_000 + number % CONVERSATIONS);
    let id = format!("144115213033478435-1000000000-{}", 1_000_000_000 + number);
    let time = UnixMillis::new(1_670_574_414_123);
    let recalled = Recalled {
        sdk_app_id: 1_400_000_001,
        command: "Group.CallbackAfterRecallMsg",
        conversation: Conversation::Group {
            group_id: &group,
            group_type: Some("Public"),
            topic_id: None,
        },
        operator_id: Some("admin"),
        messages: vec![RecalledMessage::Group {
            seq: 1_000_000_000 + number,
            id: Some(&id),
        }],
        recalled_at: time,
        received_at: time.expect("the time is invalid"),
        client: Client {
            ip: Some("127.0.0.1".into()),
            platform: Some("RESTAPI".into()),
        },
    };
    recalled.event()
}
