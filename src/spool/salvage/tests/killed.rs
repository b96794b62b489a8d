//! The files of a killed spool, and a restart on them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::event::{Event, Seq, tests};
use crate::spool::tests::{config, until};
use crate::spool::watermark::Watermark;
use crate::spool::{Appended, Config, Opened, Spool};

/// No step takes this long unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Every tenth event is larger than a page.
pub(super) fn event(number: u64) -> Event {
    let length = if number.is_multiple_of(10) { 9000 } else { 300 };
    tests::event(number.into(), format!("{number:<length$}"))
}

/// The files of a killed spool that contains these events.
pub(super) struct Killed {
    pub(super) folder: TempDir,
    pub(super) events: u64,
}

impl Killed {
    /// Events up to `in_file` were checkpointed, the others are in the WAL. The sink has confirmed all events up to
    /// `cursor`.
    pub(super) async fn new(in_file: u64, events: u64, cursor: u64) -> Self {
        let home = TempDir::new().unwrap();
        for (from, to, killed) in [(1, in_file, false), (in_file + 1, events, true)] {
            let spool = open(&config(&home)).spool;
            let numbers: Vec<u64> = (from..=to).collect();
            for group in numbers.chunks(9) {
                let appended =
                    join_all(group.iter().map(|number| spool.append(event(*number)))).await;
                for (number, appended) in group.iter().zip(appended) {
                    assert_eq!(appended, Ok(Appended::New(Seq(*number))));
                }
            }
            spool.cursor("sink").unwrap().advance(Seq(cursor.min(to)));
            if killed {
                until("the cursor to be saved", || {
                    read_watermark(home.path()).unwrap().confirmed == Seq(cursor)
                })
                .await;
                let folder = TempDir::new().unwrap();
                for file in ["spool.db", "spool.db-wal", "spool.db.lock"] {
                    fs::copy(home.path().join(file), folder.path().join(file)).unwrap();
                }
                return Self { folder, events };
            }
            spool.close().await;
        }
        unreachable!()
    }

    pub(super) fn database(&self) -> PathBuf {
        self.folder.path().join("spool.db")
    }

    pub(super) fn wal(&self) -> PathBuf {
        self.folder.path().join("spool.db-wal")
    }

    pub(super) fn quarantined(&self) -> Vec<PathBuf> {
        super::super::quarantined(&self.database()).unwrap()
    }

    /// Opens the spool and reads everything; opens it again if the read finds damage. Returns the events that a sink
    /// gets, the lost numbers, and the cursor that the sink starts at.
    pub(super) async fn restart(&self) -> (BTreeMap<u64, Event>, Vec<u64>, u64) {
        let config = config(&self.folder);
        let mut lost = BTreeSet::new();
        for _ in 0..3 {
            let watermark = read_watermark(self.folder.path());
            let Opened { spool, .. } = open(&config);
            if let Some(watermark) = watermark {
                assert_eq!(spool.id(), watermark.spool_id, "the spool's id changed");
            }
            for (first, last) in &spool.report().lost {
                lost.extend(first.0..=last.0);
            }
            let start = spool.cursor("sink").unwrap().position();
            let outcome = read_all(&spool, start).await;
            if let Some(read) = outcome {
                let appended = spool.append(event(1_000_000)).await.unwrap();
                let newest = self.events.max(start.0);
                assert!(
                    matches!(appended, Appended::New(seq) if seq.0 > newest),
                    "{appended:?}"
                );
                assert_eq!(spool.lost(), lost.len() as u64);
                // A row that does not match its checksum is skipped if SQLite can read its page.
                lost.extend(spool.shared.unreadable().iter().map(|seq| seq.0));
                spool.close().await;
                return (read, lost.into_iter().collect(), start.0);
            }
            let failed = timeout(TIMEOUT, spool.failed()).await.unwrap();
            assert!(failed.to_string().contains("is damaged"), "{failed}");
            spool.close().await;
        }
        panic!("still damaged after three starts");
    }
}

/// Uses a separate handle: the lock's owner has the file open.
pub(super) fn read_watermark(folder: &Path) -> Option<Watermark> {
    let line = fs::read(folder.join("spool.db.lock")).ok()?;
    let line = str::from_utf8(line.get(..Watermark::LENGTH)?).ok()?;
    Watermark::decode(line)
}

pub(super) fn open(config: &Config) -> Opened {
    Spool::open(config, &["sink"]).unwrap()
}

/// Every event after a position, without unreadable ones; `None` if damage is found.
pub(super) async fn read_all(spool: &Spool, start: Seq) -> Option<BTreeMap<u64, Event>> {
    let mut reader = spool.reader(start);
    let mut read = BTreeMap::new();
    let deadline = Instant::now() + TIMEOUT;
    while reader.position() < spool.status().last {
        let rows = timeout(TIMEOUT, reader.next(7)).await.unwrap();
        if let Err(error) = rows {
            // An error counts as damage only if it lasts.
            let refusing = spool.status().refusing;
            if refusing.is_some_and(|refusing| refusing.is_final()) {
                return None;
            }
            assert!(Instant::now() < deadline, "still failing: {error}");
            sleep(Duration::from_millis(20)).await;
            continue;
        }
        for row in rows.unwrap() {
            if let Some(event) = row.event {
                assert!(read.insert(row.seq.0, (*event).clone()).is_none());
            }
        }
    }
    Some(read)
}

pub(super) fn overwrite_with_noise(path: &Path, at: u64, length: usize) {
    let noise: Vec<u8> = (0..length)
        .map(|index| u8::try_from((index * 151 + index / 7) % 251).unwrap())
        .collect();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&noise, at).unwrap();
}

pub(super) fn numbers(events: &BTreeMap<u64, Event>) -> Vec<u64> {
    events.keys().copied().collect()
}

pub(super) fn assert_unchanged(events: &BTreeMap<u64, Event>) {
    for (number, found) in events {
        assert_eq!(*found, event(*number), "number {number}");
    }
}
