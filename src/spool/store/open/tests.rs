use std::fs;

use tempfile::TempDir;

use super::*;
use crate::spool::salvage::tests::database;
use crate::spool::tests::config;

fn watermark(last: u64) -> Watermark {
    Watermark {
        last: Seq(last),
        ..Watermark::default()
    }
}

/// How `Store::open` classifies the file at the path, with this high-water mark beside it.
fn open_result(folder: &TempDir, watermark: Option<Watermark>) -> &'static str {
    let config = config(folder);
    if let Some(watermark) = watermark {
        let lock = files::lock(&config.path, Duration::ZERO).unwrap();
        lock.write_watermark(watermark).unwrap();
    }
    match Store::open(&config) {
        Ok(store) if store.report.quarantined.is_some() => "damaged",
        Ok(_) => "spool",
        Err(OpenError::Newer { .. }) => "newer",
        Err(OpenError::Foreign(_)) => "foreign",
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn an_empty_file_is_new_unless_its_watermark_counts_events() {
    for (watermark, expected) in [
        (None, "spool"),
        (Some(watermark(0)), "spool"),
        (Some(watermark(7)), "damaged"),
    ] {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("spool.db"), "").unwrap();
        assert_eq!(open_result(&folder, watermark), expected, "{watermark:?}");
    }
}

#[test]
fn identifies_a_spool_by_its_header_or_its_events() {
    let foreign = "foreign";
    for (change, empty, with_event) in [
        ("", "spool", "spool"),
        ("PRAGMA user_version = 2", "newer", "newer"),
        ("PRAGMA user_version = 999", "newer", "newer"),
        ("PRAGMA user_version = 1000", foreign, "damaged"),
        ("PRAGMA user_version = 0", foreign, "damaged"),
        ("PRAGMA user_version = -1", foreign, "damaged"),
        ("PRAGMA application_id = 0", foreign, "damaged"),
        ("DROP TABLE cursors", foreign, "damaged"),
    ] {
        for (has_event, expected) in [(false, empty), (true, with_event)] {
            let folder = TempDir::new().unwrap();
            let connection = database::create(&folder.path().join("spool.db"));
            if has_event {
                database::insert(&connection, &database::event(1));
            }
            connection.execute_batch(change).unwrap();
            drop(connection);
            assert_eq!(
                open_result(&folder, None),
                expected,
                "{change}, {has_event}"
            );
        }
    }
}

#[test]
fn a_non_database_is_a_spool_with_a_watermark_or_an_event() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("spool.db");
    let foreign_text = "a diary\n".repeat(1000);
    fs::write(&path, &foreign_text).unwrap();
    assert_eq!(open_result(&folder, None), "foreign");
    assert_eq!(fs::read_to_string(&path).unwrap(), foreign_text);
    assert!(!folder.path().join("spool.db.salvaged").exists());
    assert_eq!(open_result(&folder, Some(watermark(0))), "damaged");

    let folder = TempDir::new().unwrap();
    let path = folder.path().join("spool.db");
    database::insert(&database::create(&path), &database::event(1));
    let mut bytes = fs::read(&path).unwrap();
    bytes[..4096].fill(b'x');
    fs::write(&path, bytes).unwrap();
    assert_eq!(open_result(&folder, None), "damaged");
}

#[test]
fn a_locked_spool_is_not_damaged() {
    let folder = TempDir::new().unwrap();
    let other = database::create(&folder.path().join("spool.db"));
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let error = Store::open(&config(&folder)).unwrap_err();
    assert!(matches!(error, OpenError::Database { .. }), "{error}");
    other.execute_batch("COMMIT").unwrap();
    drop(other);
    assert_eq!(open_result(&folder, None), "spool");
}

#[test]
fn an_unopenable_lock_file_is_not_reported_as_locked() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("spool.db.lock")).unwrap();
    let error = Store::open(&config(&folder)).unwrap_err();
    assert!(matches!(error, OpenError::Files { .. }), "{error}");
}

/// The oldest event's number and the newest assigned number, after a change to an empty spool.
fn bounds_after(change: &str) -> Option<(u64, u64)> {
    let folder = TempDir::new().unwrap();
    let connection = database::create(&folder.path().join("spool.db"));
    connection.execute_batch(change).unwrap();
    let open_result = schema::bounds(&connection).ok();
    open_result.map(|(first, last)| (first.0, last.0))
}

#[test]
fn the_newest_seq_is_the_largest_ever_assigned() {
    assert_eq!(bounds_after(""), Some((1, 0)));
    assert_eq!(
        bounds_after("UPDATE identity SET next_seq = 8"),
        Some((8, 7))
    );
    let events =
        "INSERT INTO events (seq, id, kind, conversation, time, appended_at, checksum, body)
                  VALUES (3, x'', 0, '', 0, 0, 0, ''), (7, x'', 0, '', 0, 0, 0, '')";
    assert_eq!(bounds_after(events), Some((3, 7)));
}

#[test]
fn seqs_out_of_range_are_damage() {
    for seq in [0, -1] {
        let event = format!(
            "INSERT INTO events (seq, id, kind, conversation, time, appended_at, checksum, body)
             VALUES ({seq}, x'', 0, '', 0, 0, 0, '')"
        );
        assert_eq!(bounds_after(&event), None, "{seq}");
    }
    assert_eq!(
        bounds_after("UPDATE identity SET next_seq = (1 << 62) + 1"),
        None
    );
    let largest = "UPDATE identity SET next_seq = 1 << 62";
    assert_eq!(bounds_after(largest), Some((1 << 62, (1 << 62) - 1)));
}

/// The row of `identity` has no checksum: `next_seq` may be damaged although nothing else is.
#[test]
fn a_gap_after_next_seq_does_not_stop_a_start() {
    let folder = TempDir::new().unwrap();
    assert_eq!(open_result(&folder, None), "spool");
    let gaps = |last: u64| {
        assert_eq!(open_result(&folder, Some(watermark(last))), "spool");
        let store = Store::open(&config(&folder)).unwrap();
        let gaps = store.gaps().unwrap();
        let damage = "UPDATE identity SET next_seq = 1";
        store.connection.execute_batch(damage).unwrap();
        let ends = gaps.iter().map(|gap| (gap.first.0, gap.last.0, gap.lost));
        ends.collect::<Vec<_>>()
    };
    assert_eq!(gaps(10), [(1, 10, true)]);
    assert_eq!(gaps(12), [(1, 10, true), (11, 12, true)]);
}

#[test]
fn a_sink_without_a_cursor_is_reported_after_a_salvage() {
    let folder = TempDir::new().unwrap();
    let config = config(&folder);
    let mut store = Store::open(&config).unwrap();
    store.reconcile_cursors(&["kept", "lost"]).unwrap();
    assert_eq!(store.report.cursors, [""; 0]);
    assert!(store.forget("lost").unwrap());
    store.lock.mark_damaged().unwrap();
    drop(store);
    let mut store = Store::open(&config).unwrap();
    assert!(store.report.quarantined.is_some());
    store.reconcile_cursors(&["kept", "lost"]).unwrap();
    assert_eq!(store.report.cursors, ["lost"]);
}

#[test]
fn the_stdout_cursor_is_deleted_if_stdout_is_not_the_sink() {
    let folder = TempDir::new().unwrap();
    for (sink, kept) in [
        ("stdout", &["stdout"][..]),
        ("kafka", &["kafka"]),
        ("stdout", &["kafka", "stdout"]),
    ] {
        let mut store = Store::open(&config(&folder)).unwrap();
        store.reconcile_cursors(&[sink]).unwrap();
        drop(store);
        let store = Store::open(&config(&folder)).unwrap();
        assert!(store.saved_cursors.keys().eq(kept), "{sink}");
    }
}
