use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::spool::rescue::tests::database;
use crate::spool::tests::config;

fn note(last: u64) -> Note {
    Note {
        last: Seq(last),
        ..Note::default()
    }
}

/// What a file turns out to be.
fn identified(path: &Path, note: Option<Note>) -> &'static str {
    let connection = schema::connect(path, OpenFlags::default()).unwrap();
    connection.busy_timeout(Duration::ZERO).unwrap();
    match identify(&connection, path, note) {
        Ok(Kind::New) => "new",
        Ok(Kind::Spool) => "a spool",
        Ok(Kind::Damaged(_)) => "damaged",
        Err(Obstacle::Other(OpenError::Newer { .. })) => "newer",
        Err(Obstacle::Other(OpenError::Foreign(_))) => "somebody else's",
        Err(Obstacle::Other(OpenError::Database { .. })) => "out of reach",
        Err(_) => "something else",
    }
}

#[test]
fn an_empty_file_is_new_where_nothing_was_kept_in_it() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("spool.db");
    fs::write(&path, "").unwrap();
    assert_eq!(identified(&path, None), "new");
    assert_eq!(identified(&path, Some(note(0))), "new");
    assert_eq!(identified(&path, Some(note(7))), "damaged");
}

#[test]
fn a_spool_is_known_by_its_marks_or_its_tables() {
    for (change, expected) in [
        ("", "a spool"),
        ("PRAGMA user_version = 2", "newer"),
        ("PRAGMA user_version = 999", "newer"),
        ("PRAGMA user_version = 1000", "damaged"),
        ("PRAGMA user_version = 0", "damaged"),
        ("PRAGMA user_version = -1", "damaged"),
        ("PRAGMA application_id = 0", "damaged"),
        (
            "PRAGMA application_id = 0; DROP TABLE gaps",
            "somebody else's",
        ),
    ] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("spool.db");
        database::create(&path).execute_batch(change).unwrap();
        assert_eq!(identified(&path, None), expected, "{change}");
    }
}

#[test]
fn what_is_no_database_is_a_spool_where_a_note_or_an_event_says_so() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("spool.db");
    fs::write(&path, "a diary\n".repeat(1000)).unwrap();
    assert_eq!(identified(&path, None), "somebody else's");
    assert_eq!(identified(&path, Some(note(0))), "damaged");

    fs::remove_file(&path).unwrap();
    database::event(1).insert(&database::create(&path)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[..4096].fill(b'x');
    fs::write(&path, bytes).unwrap();
    assert_eq!(identified(&path, None), "damaged");
}

#[test]
fn a_spool_that_somebody_else_writes_to_is_not_damaged() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("spool.db");
    let other = database::create(&path);
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert_eq!(identified(&path, Some(note(7))), "out of reach");
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(identified(&path, Some(note(7))), "a spool");
}

#[test]
fn a_lock_that_cannot_be_opened_is_nobody_elses() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("spool.db.lock")).unwrap();
    let error = Store::open(&config(&folder)).unwrap_err();
    assert!(matches!(error, OpenError::Files { .. }), "{error}");
}

/// The oldest event's number and the newest in use, after a change of an empty spool.
fn bounds_after(change: &str) -> Option<(u64, u64)> {
    let folder = TempDir::new().unwrap();
    let connection = database::create(&folder.path().join("spool.db"));
    connection.execute_batch(change).unwrap();
    let found = bounds(&connection).ok();
    found.map(|(first, last)| (first.0, last.0))
}

#[test]
fn the_newest_number_is_the_largest_of_all_tables() {
    assert_eq!(bounds_after(""), Some((1, 0)));
    for change in [
        "UPDATE identity SET next_seq = 8",
        "INSERT INTO cursors VALUES ('sink', 7, 1, 0)",
        "INSERT INTO gaps VALUES (2, 7, 1)",
        "INSERT INTO recent_ids VALUES (7, zeroblob(16))",
    ] {
        assert_eq!(bounds_after(change), Some((8, 7)), "{change}");
    }
    let events = "INSERT INTO events VALUES (3, x'', 0, 0, 0, x''), (7, x'', 0, 0, 0, x'')";
    assert_eq!(bounds_after(events), Some((3, 7)));
}

#[test]
fn numbers_that_no_spool_gives_out_are_damage() {
    for change in [
        "INSERT INTO events VALUES (0, x'', 0, 0, 0, x'')",
        "INSERT INTO events VALUES (-1, x'', 0, 0, 0, x'')",
        "UPDATE identity SET next_seq = (1 << 62) + 1",
        "INSERT INTO gaps VALUES (2, ~(1 << 63), 1)",
    ] {
        assert_eq!(bounds_after(change), None, "{change}");
    }
    let largest = "UPDATE identity SET next_seq = 1 << 62";
    assert_eq!(bounds_after(largest), Some((1 << 62, (1 << 62) - 1)));
}

#[test]
fn a_sink_without_a_cursor_is_a_finding_where_the_spool_was_rescued() {
    let folder = TempDir::new().unwrap();
    let config = config(&folder);
    let mut store = Store::open(&config).unwrap();
    store.settle_cursors(&["kept", "lost"]).unwrap();
    assert_eq!(store.findings().cursors, [""; 0]);
    assert!(store.forget("lost").unwrap());
    store.lock().mark_damaged().unwrap();
    drop(store);
    let mut store = Store::open(&config).unwrap();
    assert!(store.findings().rescue.is_some());
    store.settle_cursors(&["kept", "lost"]).unwrap();
    assert_eq!(store.findings().cursors, ["lost"]);
}

#[test]
fn the_cursor_of_stdout_is_kept_as_long_as_it_is_the_sink() {
    let folder = TempDir::new().unwrap();
    for (sink, kept) in [
        ("stdout", &["stdout"][..]),
        ("kafka", &["kafka"]),
        ("stdout", &["kafka", "stdout"]),
    ] {
        let mut store = Store::open(&config(&folder)).unwrap();
        store.settle_cursors(&[sink]).unwrap();
        drop(store);
        let store = Store::open(&config(&folder)).unwrap();
        assert!(store.saved_cursors().keys().eq(kept), "{sink}");
    }
}
