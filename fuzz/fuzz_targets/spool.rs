//! Opens a spool that was killed and whose files were damaged.
//!
//! The input is a list of patches: file, position, number of bytes, and the bytes; with no bytes, the file is truncated
//! at the position. The spool opens, unless the damage makes it look like a foreign or a newer file. What is read is
//! what was appended, in order and once; the next event gets a number above the sink's cursor.
#![no_main]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use recall_relay::event::{Event, Kind, Seq, UnixMillis};
use recall_relay::setting::Size;
use recall_relay::spool::{Appended, Config, OpenError, Opened, Row, Spool};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use uuid::Uuid;

const EVENTS: u64 = 40;
const FILES: [&str; 3] = ["spool.db", "spool.db-wal", "spool.db.lock"];

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// The files of a killed spool: half of the events are in the database, half in the WAL.
static KILLED: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    RUNTIME.block_on(async {
        let folder = folder();
        let spool = open(&folder);
        append(&spool, 1..=EVENTS / 2).await;
        spool.close().await;
        let spool = open(&folder);
        append(&spool, EVENTS / 2 + 1..=EVENTS).await;
        let read = |name: &&str| fs::read(folder.path().join(name)).unwrap();
        FILES.iter().map(read).collect()
    })
});

fuzz_target!(|patches: &[u8]| {
    let folder = folder();
    for (name, content) in FILES.iter().zip(KILLED.iter()) {
        fs::write(folder.path().join(name), content).unwrap();
    }
    damage(folder.path(), patches);
    RUNTIME.block_on(async {
        for _ in 0..3 {
            let spool = match try_open(&folder) {
                Ok(spool) => spool,
                Err(OpenError::Foreign(_)) => return assert!(watermark_is_lost(&folder)),
                // The damaged version number looks like a future one.
                Err(OpenError::Newer { found: 2..1000, .. }) => return,
                Err(error) => panic!("{error:?}"),
            };
            let ok = read_all(&spool).await && accepts(&spool).await;
            spool.close().await;
            if ok {
                return;
            }
        }
        panic!("the spool fails after every start");
    });
});

/// A temporary folder, in memory if possible.
fn folder() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap_or_else(|_| TempDir::new().unwrap())
}

fn open(folder: &TempDir) -> Spool {
    try_open(folder).unwrap()
}

/// Whether the lock file, which has the high-water mark, was damaged. Then the database may look like another
/// program's.
fn watermark_is_lost(folder: &TempDir) -> bool {
    fs::read(folder.path().join(FILES[2])).unwrap() != KILLED[2]
}

fn try_open(folder: &TempDir) -> Result<Spool, OpenError> {
    let config = Config {
        path: folder.path().join("spool.db"),
        reserve: Size(0),
        ..Config::default()
    };
    Spool::open(&config, &["sink"]).map(|Opened { spool, .. }| spool)
}

/// An event; every eighth is larger than a page.
fn event(number: u64) -> Event {
    let length = if number.is_multiple_of(8) { 5000 } else { 200 };
    Event {
        id: Uuid::from_u128(number.into()),
        kind: Kind::Group,
        conversation: "1:group".into(),
        subject: Some("group".into()),
        group_type: None,
        time: UnixMillis::new(0).unwrap(),
        body: Bytes::from(format!("{number:<length$}")),
    }
}

async fn append(spool: &Spool, numbers: impl Iterator<Item = u64>) {
    for number in numbers {
        assert_eq!(
            spool.append(event(number)).await,
            Ok(Appended::New(Seq(number)))
        );
    }
}

/// Reads all events and checks that they are what was appended. Returns false if the spool has failed.
async fn read_all(spool: &Spool) -> bool {
    let mut last = spool.cursor("sink").unwrap().position();
    let mut reader = spool.reader(last);
    while reader.position() < spool.status().last {
        let rows = timeout(Duration::from_secs(8), reader.next(100))
            .await
            .expect("rows in time");
        let Ok(rows) = rows else {
            if failed_for_good(spool) {
                return false;
            }
            continue;
        };
        for row in rows {
            let Row { seq, event: read } = row;
            assert!(seq > last, "{seq} after {last}");
            last = seq;
            if let Some(read) = read {
                assert_eq!(*read, event(seq.0));
            }
        }
    }
    true
}

/// Appends one more event. Returns false if the spool has failed.
async fn accepts(spool: &Spool) -> bool {
    loop {
        match spool.append(event(1000)).await {
            Ok(appended) => {
                let cursor = spool.cursor("sink").unwrap().position();
                assert!(
                    matches!(appended, Appended::New(seq) if seq > cursor),
                    "{appended:?}"
                );
                return true;
            }
            Err(_) if failed_for_good(spool) => return false,
            Err(error) => assert!(error.is_final(), "{error}"),
        }
    }
}

fn failed_for_good(spool: &Spool) -> bool {
    let refusing = spool.status().refusing;
    refusing.is_some_and(|reason| reason.is_final())
}

fn damage(folder: &Path, mut patches: &[u8]) {
    while let [which, high, low, length, rest @ ..] = patches {
        let name = FILES[usize::from(*which) % FILES.len()];
        let file = OpenOptions::new()
            .write(true)
            .open(folder.join(name))
            .unwrap();
        let size = file.metadata().unwrap().len();
        let at = size * u64::from(u16::from_be_bytes([*high, *low])) / u64::from(u16::MAX);
        if *length == 0 {
            file.set_len(at).unwrap();
            patches = rest;
            continue;
        }
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        file.write_all_at(bytes, at).unwrap();
        patches = rest;
    }
}
