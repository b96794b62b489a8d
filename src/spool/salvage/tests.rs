//! Damages the files of a killed spool in every way.

pub(in crate::spool) mod database;
mod pages;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep, timeout};

use crate::event::{Event, Seq, tests};
use crate::spool::files;
use crate::spool::tests::{config, until};
use crate::spool::watermark::Watermark;
use crate::spool::{Appended, Config, Opened, Spool};

const PAGE: u64 = 4096;

/// No step takes this long unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Every tenth event is larger than a page.
fn event(number: u64) -> Event {
    let length = if number.is_multiple_of(10) { 9000 } else { 300 };
    tests::event(number.into(), format!("{number:<length$}"))
}

/// The files of a killed spool that contains these events.
struct Killed {
    folder: TempDir,
    events: u64,
}

impl Killed {
    /// Events up to `in_file` were checkpointed, the others are in the WAL. The sink has confirmed all events up to
    /// `cursor`.
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

    fn database(&self) -> PathBuf {
        self.folder.path().join("spool.db")
    }

    fn wal(&self) -> PathBuf {
        self.folder.path().join("spool.db-wal")
    }

    fn quarantined(&self) -> Vec<PathBuf> {
        super::quarantined(&self.database()).unwrap()
    }

    /// Opens the spool, again if damage shows only while it is read, until everything was read. Returns the events that
    /// a sink gets, the lost numbers, and the cursor that the sink starts at.
    async fn restart(&self) -> (BTreeMap<u64, Event>, Vec<u64>, u64) {
        let config = config(&self.folder);
        let mut lost = BTreeSet::new();
        for _ in 0..3 {
            let watermark = read_watermark(self.folder.path());
            let Opened { spool, .. } = open(&config);
            if let Some(watermark) = watermark {
                assert_eq!(spool.id(), watermark.spool_id, "as the cluster knows it");
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
        panic!("it is damaged for ever");
    }
}

/// Uses a separate handle: the lock's owner has the file open.
fn read_watermark(folder: &Path) -> Option<Watermark> {
    let line = fs::read(folder.join("spool.db.lock")).ok()?;
    let line = str::from_utf8(line.get(..Watermark::LENGTH)?).ok()?;
    Watermark::decode(line)
}

fn open(config: &Config) -> Opened {
    Spool::open(config, &["sink"]).unwrap()
}

/// Every event after a position, without unreadable ones; `None` if damage is found.
async fn read_all(spool: &Spool, start: Seq) -> Option<BTreeMap<u64, Event>> {
    let mut reader = spool.reader(start);
    let mut read = BTreeMap::new();
    let deadline = Instant::now() + TIMEOUT;
    while reader.position() < spool.status().last {
        let rows = timeout(TIMEOUT, reader.next(7)).await.unwrap();
        if let Err(error) = rows {
            // An error counts as damage only after it has lasted.
            let refusing = spool.status().refusing;
            if refusing.is_some_and(|refusing| refusing.is_final()) {
                return None;
            }
            assert!(Instant::now() < deadline, "{error} for ever");
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
    assert!(killed.quarantined().is_empty());
}

#[tokio::test]
async fn a_garbled_head_costs_no_event() {
    let killed = Killed::new(100, 100, 30).await;
    let before = fs::read(killed.database()).unwrap();
    garble(&killed.database(), 0, 4096);
    garble(&killed.wal(), 0, 32);
    let damaged = (
        fs::read(killed.database()).unwrap(),
        fs::read(killed.wal()).unwrap(),
    );
    let (read, lost, start) = killed.restart().await;
    // The sink's cursor is unknown.
    assert_eq!(
        (numbers(&read), lost, start),
        ((1..=100).collect(), vec![], 0)
    );
    assert_unchanged(&read);
    let quarantined = killed.quarantined();
    assert_eq!(quarantined.len(), 1);
    assert_eq!(fs::read(&quarantined[0]).unwrap(), damaged.0);
    assert_ne!(before, damaged.0);
    let spool = open(&config(&killed.folder)).spool;
    assert_eq!(spool.quarantined(), quarantined, "also at the next start");
    let mode = fs::metadata(killed.database())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(
        mode & 0o777,
        0o600,
        "the new file is its owner's alone, too"
    );
    let wal = quarantined[0].with_file_name(format!(
        "{}-wal",
        quarantined[0].file_name().unwrap().to_str().unwrap()
    ));
    assert_eq!(fs::read(wal).unwrap(), damaged.1);
    fs::remove_file(&quarantined[0]).unwrap();
    until("it to be told no more", || spool.quarantined().is_empty()).await;
    spool.close().await;
}

/// Even if the high-water mark is missing, too.
#[tokio::test]
async fn a_spool_is_known_by_its_events() {
    let killed = Killed::new(100, 100, 30).await;
    fs::remove_file(killed.folder.path().join("spool.db.lock")).unwrap();
    garble(&killed.database(), 0, 4096);
    let spool = open(&config(&killed.folder)).spool;
    assert_eq!(spool.status().rows(), 100);
    let told = spool.report().quarantined.as_ref().unwrap().to_string();
    let quarantined = killed.quarantined()[0].display().to_string();
    assert!(
        told.contains("100 events were kept") && told.contains(&quarantined),
        "{told}"
    );
    spool.close().await;
}

/// Salvage reads the file's pages and what was committed to the WAL since the last checkpoint.
#[tokio::test]
async fn what_lies_in_the_wal_of_a_damaged_file_is_kept() {
    let killed = Killed::new(40, 100, 30).await;
    files::lock(&killed.database())
        .unwrap()
        .mark_damaged()
        .unwrap();
    let (read, lost, start) = killed.restart().await;
    assert_eq!(
        (numbers(&read), lost, start),
        ((31..=100).collect(), vec![], 30)
    );
    assert_unchanged(&read);
    assert_eq!(killed.quarantined().len(), 1);
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
    assert_eq!(killed.quarantined().len(), 1);
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
    fs::remove_file(killed.wal()).unwrap();
    let (read, lost, _) = killed.restart().await;
    assert_eq!(numbers(&read).last(), Some(&40));
    assert_eq!(lost, (41..=100).collect::<Vec<_>>());
}

/// SQLite ignores what follows a damaged frame, and so do we.
#[tokio::test]
async fn a_garbled_frame_costs_what_follows_in_the_wal() {
    let killed = Killed::new(40, 100, 30).await;
    let frames = (fs::metadata(killed.wal()).unwrap().len() - 32) / (PAGE + 24);
    garble(&killed.wal(), 32 + frames / 2 * (PAGE + 24), 4096);
    let (read, lost, _) = killed.restart().await;
    assert_unchanged(&read);
    let read = numbers(&read);
    let end = *read.last().unwrap();
    assert!((41..100).contains(&end), "{end}");
    assert_eq!(read, (31..=end).collect::<Vec<_>>());
    assert_eq!(lost, (end + 1..=100).collect::<Vec<_>>());
    assert!(killed.quarantined().is_empty());
}

/// A failed transaction has left frames in the WAL, but its callbacks were answered with 503.
#[tokio::test]
async fn frames_that_were_not_committed_are_not_salvaged() {
    let killed = Killed::new(40, 60, 30).await;
    let wal = fs::read(killed.wal()).unwrap();
    // Remove the frame that ends the last commit: without it the group is not committed.
    let length = wal.len() - 4096 - 24;
    let file = fs::OpenOptions::new().write(true).open(killed.wal());
    file.unwrap().set_len(length as u64).unwrap();
    garble(&killed.database(), 0, 100);
    let (read, lost, _) = killed.restart().await;
    let read = numbers(&read);
    // Groups have nine events: the last group begins with event 59.
    assert_eq!(read.last(), Some(&58));
    assert_eq!(lost, [59, 60]);
}

#[tokio::test]
async fn a_database_that_is_gone_is_a_loss_and_no_new_spool() {
    let killed = Killed::new(100, 100, 30).await;
    fs::write(killed.database(), "").unwrap();
    fs::remove_file(killed.wal()).unwrap();
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
    assert_eq!(spool.report().cursors, ["sink"]);
    spool.close().await;
}

/// SQLite may skip rows without an error, for example if a bit flips in an interior page.
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
    // Their pages still contain them: deleted rows are not overwritten at once.
    let mut all = [numbers(&read), lost].concat();
    all.sort_unstable();
    assert_eq!(all, (31..=100).collect::<Vec<_>>());
}

/// Even if every sink's cursor has passed it since.
#[tokio::test]
async fn what_was_lost_once_stays_counted_after_the_next_damage() {
    let killed = Killed::new(40, 100, 30).await;
    fs::remove_file(killed.wal()).unwrap();
    let config = config(&killed.folder);
    let spool = open(&config).spool;
    assert_eq!(spool.lost(), 60);
    spool.cursor("sink").unwrap().advance(Seq(100));
    spool.shared.lock.mark_damaged().unwrap();
    spool.close().await;
    let spool = open(&config).spool;
    assert!(spool.report().quarantined.is_some());
    assert_eq!(spool.report().lost, [(Seq(41), Seq(100))]);
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
        let path = |log: bool| if log { killed.wal() } else { killed.database() };
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

    /// Whatever happens to the files, the start succeeds, every event that is read equals what was written, and every
    /// other event is named as lost or reported as unreadable.
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
            assert!(missing.is_empty(), "{missing:?} of {damages:?}");
        });
    }
}
