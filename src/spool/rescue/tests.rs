//! Damage of every kind, done to the files of a spool that was killed.

pub(in crate::spool) mod database;
mod pages;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::event::{Event, Kind, Seq};
use crate::spool::note::Note;
use crate::spool::tests::{config, until};
use crate::spool::{Appended, Config, Opened, Row, Spool};

const PAGE: u64 = 4096;

/// Nothing here takes so long, unless it takes for ever.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every tenth event is larger than a page.
fn event(number: u64) -> Event {
    let length = if number.is_multiple_of(10) { 9000 } else { 300 };
    Event {
        kind: Kind::Recalled,
        id: Uuid::from_u128(number.into()),
        bytes: Bytes::from(format!("{number:<length$}")),
    }
}

/// The files of a spool that was killed with these events in it.
struct Killed {
    folder: TempDir,
    events: u64,
}

impl Killed {
    /// Events up to `in_file` were brought into the file, the others are in the log. The sink has
    /// confirmed all up to `cursor`.
    async fn new(in_file: u64, events: u64, cursor: u64) -> Self {
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
                let lock = fs::File::open(home.path().join("spool.db.lock")).unwrap();
                until("the cursor to be saved", || {
                    Note::read(&lock).unwrap().unwrap().confirmed == Seq(cursor)
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

    fn database(&self) -> PathBuf {
        self.folder.path().join("spool.db")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("spool.db-wal")
    }

    fn aside(&self) -> Vec<PathBuf> {
        super::put_aside(&self.database()).unwrap()
    }

    /// Starts on the files, again where damage shows only later, until all is read. Returns what a sink
    /// gets, the numbers that are lost, and where it began.
    async fn restart(&self) -> (BTreeMap<u64, Event>, Vec<u64>, u64) {
        let config = config(&self.folder);
        let mut lost = BTreeSet::new();
        for _ in 0..3 {
            let lock = fs::File::open(self.folder.path().join("spool.db.lock"));
            let note = lock.map(|lock| Note::read(&lock).unwrap());
            let Opened { spool, .. } = open(&config);
            if let Ok(Some(note)) = note {
                assert_eq!(spool.id(), note.spool_id, "as the cluster knows it");
            }
            for (first, last) in &spool.findings().lost {
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
                spool.close().await;
                return (read, lost.into_iter().collect(), start.0);
            }
            let failed = timeout(PATIENCE, spool.failed()).await.unwrap();
            assert!(failed.to_string().contains("is damaged"), "{failed}");
            spool.close().await;
        }
        panic!("it is damaged for ever");
    }
}

fn open(config: &Config) -> Opened {
    Spool::open(config, &["sink"]).unwrap()
}

/// Every event after a position; none where damage is found. What cannot be read is left out.
async fn read_all(spool: &Spool, start: Seq) -> Option<BTreeMap<u64, Event>> {
    let mut tail = spool.tail(start).unwrap();
    let mut read = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    while tail.position() < spool.status().last {
        let rows = timeout(PATIENCE, tail.next(7)).await.unwrap();
        if let Err(error) = rows {
            // It is damage once it has lasted.
            let refusing = spool.status().refusing;
            if refusing.is_some_and(|refusing| refusing.is_final()) {
                return None;
            }
            assert!(Instant::now() < deadline, "{error} for ever");
            sleep(Duration::from_millis(20)).await;
            continue;
        }
        for row in rows.unwrap() {
            if let Row::Event(stored) = row {
                assert!(read.insert(stored.seq.0, stored.event).is_none());
            }
        }
    }
    Some(read)
}

fn garble(path: &Path, at: u64, length: usize) {
    let noise: Vec<u8> = (0..length)
        .map(|index| u8::try_from((index * 151 + index / 7) % 251).unwrap())
        .collect();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&noise, at).unwrap();
}

fn numbers(events: &BTreeMap<u64, Event>) -> Vec<u64> {
    events.keys().copied().collect()
}

fn assert_unchanged(events: &BTreeMap<u64, Event>) {
    for (number, found) in events {
        assert_eq!(*found, event(*number), "number {number}");
    }
}

#[tokio::test]
async fn what_was_killed_and_is_whole_is_read_as_it_was() {
    let killed = Killed::new(40, 100, 30).await;
    let (read, lost, start) = killed.restart().await;
    assert_eq!(
        (numbers(&read), lost, start),
        ((31..=100).collect(), vec![], 30)
    );
    assert!(killed.aside().is_empty());
}

#[tokio::test]
async fn a_garbled_head_costs_no_event() {
    let killed = Killed::new(40, 100, 30).await;
    let before = (
        fs::read(killed.database()).unwrap(),
        fs::read(killed.log()).unwrap(),
    );
    garble(&killed.database(), 0, 4096);
    garble(&killed.log(), 0, 32);
    let damaged = fs::read(killed.database()).unwrap();
    let (read, lost, start) = killed.restart().await;
    // Nobody can tell any more where the sink stood.
    assert_eq!(
        (numbers(&read), lost, start),
        ((1..=100).collect(), vec![], 0)
    );
    assert_unchanged(&read);
    let aside = killed.aside();
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read(&aside[0]).unwrap(), damaged);
    assert_ne!(before.0, damaged);
    let spool = open(&config(&killed.folder)).spool;
    assert_eq!(spool.put_aside(), aside, "also at the next start");
    let mode = fs::metadata(killed.database())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(
        mode & 0o777,
        0o600,
        "the new file is its owner's alone, too"
    );
    let log = aside[0].with_file_name(format!(
        "{}-wal",
        aside[0].file_name().unwrap().to_str().unwrap()
    ));
    assert_eq!(fs::read(log).unwrap()[32..], before.1[32..]);
    fs::remove_file(&aside[0]).unwrap();
    until("it to be told no more", || spool.put_aside().is_empty()).await;
    spool.close().await;
}

/// With the note gone as well, the events that lie in the file speak for it.
#[tokio::test]
async fn a_spool_is_known_by_its_events() {
    let killed = Killed::new(100, 100, 30).await;
    fs::remove_file(killed.folder.path().join("spool.db.lock")).unwrap();
    garble(&killed.database(), 0, 4096);
    let spool = open(&config(&killed.folder)).spool;
    assert_eq!(spool.status().rows(), 100);
    let told = spool.findings().rescue.as_ref().unwrap().to_string();
    let aside = killed.aside()[0].display().to_string();
    assert!(
        told.contains("100 events were kept") && told.contains(&aside),
        "{told}"
    );
    spool.close().await;
}

#[tokio::test]
async fn a_file_of_somebody_else_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let database = folder.path().join("spool.db");
    fs::write(&database, "a diary\n".repeat(1000)).unwrap();
    let error = Spool::open(&config(&folder), &["sink"]).unwrap_err();
    assert!(error.to_string().contains("is not a spool"), "{error}");
    assert_eq!(
        fs::read_to_string(&database).unwrap(),
        "a diary\n".repeat(1000)
    );
}

#[tokio::test]
async fn a_garbled_page_costs_the_events_in_it_and_they_are_named() {
    let killed = Killed::new(300, 300, 20).await;
    let file = fs::read(killed.database()).unwrap();
    let pages: Vec<&[u8]> = file.chunks(4096).collect();
    let leaf = (pages.len() / 2..pages.len()).find(|page| pages[*page][0] == 0x0d);
    garble(&killed.database(), PAGE * leaf.unwrap() as u64, 4096);
    let (read, lost, start) = killed.restart().await;
    assert_unchanged(&read);
    assert_eq!(start, 20, "the cursor could be read");
    assert!((1..=20).contains(&lost.len()), "{lost:?}");
    let mut all = [numbers(&read), lost].concat();
    all.sort_unstable();
    assert_eq!(all, (21..=300).collect::<Vec<_>>());
    assert_eq!(killed.aside().len(), 1);
}

#[tokio::test]
async fn a_file_that_is_cut_off_costs_what_was_behind() {
    let killed = Killed::new(300, 300, 20).await;
    let half = fs::metadata(killed.database()).unwrap().len() / 2 + 1000;
    let file = fs::OpenOptions::new().write(true).open(killed.database());
    file.unwrap().set_len(half).unwrap();
    let (read, lost, _) = killed.restart().await;
    assert_unchanged(&read);
    let read = numbers(&read);
    assert!(
        read.len() > 100 && lost.len() > 100,
        "{} {}",
        read.len(),
        lost.len()
    );
    let mut after_start = [read, lost].concat();
    after_start.sort_unstable();
    after_start.retain(|number| *number > 20);
    assert_eq!(after_start, (21..=300).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_log_that_is_gone_is_noticed() {
    let killed = Killed::new(40, 100, 30).await;
    fs::remove_file(killed.log()).unwrap();
    let (read, lost, _) = killed.restart().await;
    assert_eq!(numbers(&read).last(), Some(&40));
    assert_eq!(lost, (41..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_lies_in_the_log_behind_a_garbled_frame_is_put_back() {
    let killed = Killed::new(40, 100, 30).await;
    let frames = (fs::metadata(killed.log()).unwrap().len() - 32) / (PAGE + 24);
    garble(&killed.log(), 32 + frames / 2 * (PAGE + 24), 4096);
    let (read, lost, _) = killed.restart().await;
    assert_unchanged(&read);
    // Each page is written again and again, so that hardly an event lies in one frame alone.
    assert!(lost.len() <= 1, "{lost:?}");
    let mut all = [numbers(&read), lost].concat();
    all.sort_unstable();
    all.retain(|number| *number > 30);
    assert_eq!(all, (31..=100).collect::<Vec<_>>());
}

/// It might say that events were deleted which are only in the log.
#[tokio::test]
async fn a_damaged_cursor_keeps_nothing_from_being_put_back() {
    let killed = Killed::new(40, 100, 0).await;
    let log = fs::read(killed.log()).unwrap();
    fs::remove_file(killed.log()).unwrap();
    let connection = rusqlite::Connection::open(killed.database()).unwrap();
    connection
        .execute("UPDATE cursors SET seq = 90", [])
        .unwrap();
    connection.close().unwrap();
    fs::write(killed.log(), log).unwrap();
    garble(&killed.log(), 0, 32);
    let (read, lost, start) = killed.restart().await;
    assert_eq!(
        (numbers(&read), lost, start),
        ((1..=100).collect(), vec![], 0)
    );
}

#[tokio::test]
async fn a_database_that_is_gone_is_a_loss_and_no_new_spool() {
    let killed = Killed::new(100, 100, 30).await;
    fs::write(killed.database(), "").unwrap();
    fs::remove_file(killed.log()).unwrap();
    let (read, lost, _) = killed.restart().await;
    assert_eq!((numbers(&read), lost), (vec![], (31..=100).collect()));
}

#[tokio::test]
async fn a_cursor_that_is_not_what_was_written_starts_again_at_the_oldest_event() {
    let killed = Killed::new(100, 100, 30).await;
    let connection = rusqlite::Connection::open(killed.database()).unwrap();
    connection
        .execute("UPDATE cursors SET seq = 90", [])
        .unwrap();
    connection.close().unwrap();
    let spool = open(&config(&killed.folder)).spool;
    assert_eq!(spool.cursor("sink").unwrap().position(), Seq(0));
    assert_eq!(spool.findings().cursors, ["sink"]);
    spool.close().await;
}

/// Rows that SQLite passes over without an error of its own, as a bit that flips in a page of keys does.
#[tokio::test]
async fn rows_that_are_passed_over_are_damage() {
    let killed = Killed::new(100, 100, 30).await;
    let connection = rusqlite::Connection::open(killed.database()).unwrap();
    connection
        .execute("DELETE FROM events WHERE seq BETWEEN 50 AND 52", [])
        .unwrap();
    connection.close().unwrap();
    let (read, lost, start) = killed.restart().await;
    assert_eq!(start, 30);
    // Their pages still hold them: what is deleted is not overwritten at once.
    let mut all = [numbers(&read), lost].concat();
    all.sort_unstable();
    assert_eq!(all, (31..=100).collect::<Vec<_>>());
}

/// Also where every sink has passed it since.
#[tokio::test]
async fn what_was_lost_once_stays_counted_after_the_next_damage() {
    let killed = Killed::new(40, 100, 30).await;
    fs::remove_file(killed.log()).unwrap();
    let config = config(&killed.folder);
    let spool = open(&config).spool;
    assert_eq!(spool.lost(), 60);
    spool.cursor("sink").unwrap().advance(Seq(100));
    spool.shared.lock.mark_damaged().unwrap();
    spool.close().await;
    let spool = open(&config).spool;
    assert!(spool.findings().rescue.is_some());
    assert_eq!(spool.findings().lost, [(Seq(41), Seq(100))]);
    assert_eq!(spool.lost(), 60);
    spool.close().await;
}

#[derive(Debug, Clone)]
enum Damage {
    Garble(bool, u16, u16),
    Zero(bool, u16, u16),
    Cut(bool, u16),
    RemoveLog,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<bool>(), any::<u16>(), 1..9000_u16).prop_map(|(log, at, length)| Damage::Garble(log, at, length)),
        2 => (any::<bool>(), any::<u16>(), 1..9000_u16).prop_map(|(log, at, length)| Damage::Zero(log, at, length)),
        1 => (any::<bool>(), any::<u16>()).prop_map(|(log, at)| Damage::Cut(log, at)),
        1 => Just(Damage::RemoveLog),
    ]
}

impl Damage {
    fn inflict(&self, killed: &Killed) {
        let path = |log: bool| if log { killed.log() } else { killed.database() };
        let place = |path: &Path, at: u16| {
            let length = fs::metadata(path).map_or(0, |metadata| metadata.len());
            length * u64::from(at) / u64::from(u16::MAX)
        };
        match *self {
            Self::Garble(log, at, length) if path(log).exists() => {
                garble(&path(log), place(&path(log), at), length.into());
            }
            Self::Zero(log, at, length) if path(log).exists() => {
                let file = fs::OpenOptions::new().write(true).open(path(log)).unwrap();
                file.write_all_at(&vec![0; length.into()], place(&path(log), at))
                    .unwrap();
            }
            Self::Cut(log, at) if path(log).exists() => {
                let file = fs::OpenOptions::new().write(true).open(path(log)).unwrap();
                file.set_len(place(&path(log), at)).unwrap();
            }
            Self::RemoveLog if path(true).exists() => fs::remove_file(path(true)).unwrap(),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever happens to the files, the start succeeds, what is read is what was written, and every
    /// event that is not read is named as lost or reported as unreadable.
    #[test]
    fn no_damage_stops_a_start_or_goes_unnoticed(
        damages in prop::collection::vec(damage(), 1..4), in_file in 20..60_u64, cursor in 0..20_u64,
    ) {
        Runtime::new().unwrap().block_on(async {
            let killed = Killed::new(in_file, 80, cursor).await;
            for damage in &damages {
                damage.inflict(&killed);
            }
            let (read, lost, start) = killed.restart().await;
            assert_unchanged(&read);
            let missing = (cursor.max(start) + 1..=80)
                .filter(|number| !read.contains_key(number) && !lost.contains(number))
                .collect::<Vec<_>>();
            // A row that does not match its checksum, in a page that SQLite can read, is passed over.
            assert!(missing.len() <= 12, "{missing:?} of {damages:?}");
        });
    }
}
