//! Damages the files of a killed spool, and opens it again.

mod any_damage;
pub(in crate::spool) mod database;
mod killed;
mod pages;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use self::killed::*;
use crate::event::Seq;
use crate::spool::Spool;
use crate::spool::files;
use crate::spool::tests::{config, until};

const PAGE: u64 = 4096;

#[tokio::test]
async fn recovers_everything_after_kill() {
    let killed = Killed::new(40, 100, 30).await;
    let (read, lost, start) = killed.restart().await;
    assert_eq!(
        (numbers(&read), lost, start),
        ((31..=100).collect(), vec![], 30)
    );
    assert!(killed.quarantined().is_empty());
}

#[tokio::test]
async fn a_damaged_first_page_loses_no_event() {
    let killed = Killed::new(100, 100, 30).await;
    let before = fs::read(killed.database()).unwrap();
    overwrite_with_noise(&killed.database(), 0, 4096);
    overwrite_with_noise(&killed.wal(), 0, 32);
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
        "only the owner may read and write the new file"
    );
    let wal = quarantined[0].with_file_name(format!(
        "{}-wal",
        quarantined[0].file_name().unwrap().to_str().unwrap()
    ));
    assert_eq!(fs::read(wal).unwrap(), damaged.1);
    fs::remove_file(&quarantined[0]).unwrap();
    until("the quarantined file to disappear from the status", || {
        spool.quarantined().is_empty()
    })
    .await;
    spool.close().await;
}

/// The high-water mark is missing, too.
#[tokio::test]
async fn a_file_without_a_header_is_identified_by_its_events() {
    let killed = Killed::new(100, 100, 30).await;
    fs::remove_file(killed.folder.path().join("spool.db.lock")).unwrap();
    overwrite_with_noise(&killed.database(), 0, 4096);
    let spool = open(&config(&killed.folder)).spool;
    assert_eq!(spool.status().rows(), 100);
    let message = spool.report().quarantined.as_ref().unwrap().to_string();
    let quarantined = killed.quarantined()[0].display().to_string();
    assert!(
        message.contains("100 events were kept") && message.contains(&quarantined),
        "{message}"
    );
    spool.close().await;
}

/// Salvage reads the file's pages and what was committed to the WAL since the last checkpoint.
#[tokio::test]
async fn salvage_includes_committed_wal_frames() {
    let killed = Killed::new(40, 100, 30).await;
    files::lock(&killed.database(), std::time::Duration::ZERO)
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
async fn a_foreign_file_is_refused_and_unchanged() {
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
async fn events_in_a_damaged_page_are_lost_and_named() {
    let killed = Killed::new(300, 300, 20).await;
    let file = fs::read(killed.database()).unwrap();
    let pages: Vec<&[u8]> = file.chunks(4096).collect();
    let leaf = (pages.len() / 2..pages.len()).find(|page| pages[*page][0] == 0x0d);
    overwrite_with_noise(&killed.database(), PAGE * leaf.unwrap() as u64, 4096);
    let (read, lost, start) = killed.restart().await;
    assert_unchanged(&read);
    assert_eq!(start, 20, "the cursor was not read");
    assert!((1..=20).contains(&lost.len()), "{lost:?}");
    let mut all = [numbers(&read), lost].concat();
    all.sort_unstable();
    assert_eq!(all, (21..=300).collect::<Vec<_>>());
    assert_eq!(killed.quarantined().len(), 1);
}

#[tokio::test]
async fn events_after_a_truncation_are_lost_and_named() {
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
async fn a_missing_wal_is_detected() {
    let killed = Killed::new(40, 100, 30).await;
    fs::remove_file(killed.wal()).unwrap();
    let (read, lost, _) = killed.restart().await;
    assert_eq!(numbers(&read).last(), Some(&40));
    assert_eq!(lost, (41..=100).collect::<Vec<_>>());
}

/// SQLite ignores the frames after a damaged one, without an error.
#[tokio::test]
async fn events_after_a_damaged_wal_frame_are_lost() {
    let killed = Killed::new(40, 100, 30).await;
    let frames = (fs::metadata(killed.wal()).unwrap().len() - 32) / (PAGE + 24);
    overwrite_with_noise(&killed.wal(), 32 + frames / 2 * (PAGE + 24), 4096);
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
async fn uncommitted_wal_frames_are_not_salvaged() {
    let killed = Killed::new(40, 60, 30).await;
    let wal = fs::read(killed.wal()).unwrap();
    // Remove the frame that ends the last commit: without it the group is not committed.
    let length = wal.len() - 4096 - 24;
    let file = fs::OpenOptions::new().write(true).open(killed.wal());
    file.unwrap().set_len(length as u64).unwrap();
    overwrite_with_noise(&killed.database(), 0, 100);
    let (read, lost, _) = killed.restart().await;
    let read = numbers(&read);
    // Groups have nine events: the last group begins with event 59.
    assert_eq!(read.last(), Some(&58));
    assert_eq!(lost, [59, 60]);
}

#[tokio::test]
async fn an_emptied_database_counts_as_loss_not_as_new_spool() {
    let killed = Killed::new(100, 100, 30).await;
    fs::write(killed.database(), "").unwrap();
    fs::remove_file(killed.wal()).unwrap();
    let (read, lost, _) = killed.restart().await;
    assert_eq!((numbers(&read), lost), (vec![], (31..=100).collect()));
}

#[tokio::test]
async fn a_damaged_cursor_restarts_at_the_oldest_event() {
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
async fn rows_skipped_by_sqlite_are_damage() {
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

/// Every sink's cursor has passed these events since.
#[tokio::test]
async fn lost_events_stay_counted_after_another_salvage() {
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
