use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::event::tests::event;
use crate::setting::Size;
use crate::spool::tests::config;

/// An event with a body of `length` bytes for each number.
pub(super) fn events(numbers: impl IntoIterator<Item = u128>, length: usize) -> Vec<Arc<Event>> {
    let event = |number| Arc::new(event(number, vec![b'x'; length]));
    numbers.into_iter().map(event).collect()
}

/// The cursors of one sink that has confirmed everything up to `seq`.
pub(super) fn cursors(seq: u64) -> BTreeMap<String, Cursor> {
    [("sink".to_owned(), Cursor::new(Seq(seq)))].into()
}

#[test]
fn a_failed_transaction_is_rolled_back() {
    let folder = TempDir::new().unwrap();
    let mut store = Store::open(&config(&folder)).unwrap();
    let insert = |connection: &Connection| {
        let insert = "INSERT INTO gaps VALUES (1, 3, 1)";
        connection.execute(insert, []).map(|_| ())
    };
    let twice = |connection: &Connection| insert(connection).and_then(|()| insert(connection));
    let error = store.transaction(twice).unwrap_err();
    assert!(matches!(error, AppendError::Io(_)), "{error}");
    assert_eq!(store.gaps(), Ok(Vec::new()));
    store.transaction(insert).unwrap();
    let gap = Gap {
        first: Seq(1),
        last: Seq(3),
        lost: true,
    };
    assert_eq!(store.gaps(), Ok(vec![gap]));
}

#[test]
fn the_probe_fails_while_writes_fail() {
    let folder = TempDir::new().unwrap();
    let mut store = Store::open(&config(&folder)).unwrap();
    let query_only = |store: &Store, state| {
        let pragma = store.connection.pragma_update(None, "query_only", state);
        pragma.unwrap();
    };
    query_only(&store, "on");
    let error = store.probe().unwrap_err();
    assert!(matches!(error, AppendError::Io(_)), "{error}");
    query_only(&store, "off");
    store.probe().unwrap();
}

/// Frames of a failed group stay in the WAL until others overwrite them. They must not be recovered after a crash:
/// their callbacks were answered with 503, and the vendor may have sent one of them again.
#[test]
fn a_failed_group_is_not_recovered_after_a_crash() {
    let folder = TempDir::new().unwrap();
    let mut store = Store::open(&config(&folder)).unwrap();
    // A group that exceeds the page cache writes frames before it commits.
    let fail = "PRAGMA cache_size = 10;
                CREATE TEMP TRIGGER refuse BEFORE INSERT ON events WHEN new.seq = 40
                BEGIN SELECT raise(ABORT, 'no'); END";
    store.connection.execute_batch(fail).unwrap();
    store
        .append(&events(1..=40, 4000), &cursors(0))
        .unwrap_err();
    store
        .connection
        .execute_batch("DROP TRIGGER refuse")
        .unwrap();
    store.append(&events([30], 4000), &cursors(0)).unwrap();

    let crashed = TempDir::new().unwrap();
    for file in ["spool.db", "spool.db-wal", "spool.db.lock"] {
        std::fs::copy(folder.path().join(file), crashed.path().join(file)).unwrap();
    }
    let store = Store::open(&config(&crashed)).unwrap();
    let ids = "SELECT group_concat(hex(id)) FROM events";
    let ids: String = store
        .connection
        .query_row(ids, [], |row| row.get(0))
        .unwrap();
    assert_eq!(ids, hex::encode_upper(Uuid::from_u128(30).as_bytes()));
}

/// The numbers of the failed group are assigned again, because no event ever had them.
#[test]
fn a_failed_group_leaves_no_gap() {
    let folder = TempDir::new().unwrap();
    let mut store = Store::open(&config(&folder)).unwrap();
    let fail =
        "CREATE TEMP TRIGGER refuse BEFORE INSERT ON events BEGIN SELECT raise(ABORT, 'no'); END";
    store.connection.execute_batch(fail).unwrap();
    store.append(&events(1..=3, 10), &cursors(0)).unwrap_err();
    store
        .connection
        .execute_batch("DROP TRIGGER refuse")
        .unwrap();
    let outcomes = store.append(&events([2], 10), &cursors(0)).unwrap();
    assert_eq!(outcomes, [Ok(Appended::New(Seq(1)))]);
}

fn dead_letters(seqs: impl IntoIterator<Item = u64>, kind: Kind, length: usize) -> Vec<DeadLetter> {
    let dead_letter = |seq: u64| DeadLetter {
        sink: "sink",
        seq: Seq(seq),
        event: Arc::new(Event {
            kind,
            ..event(seq.into(), vec![b'x'; length])
        }),
        reason: "too_large",
        detail: String::new(),
    };
    seqs.into_iter().map(dead_letter).collect()
}

fn count(store: &Store, table: &str) -> u64 {
    let count = format!("SELECT count(*) FROM {table}");
    store
        .connection
        .query_row(&count, [], |row| row.get(0))
        .unwrap()
}

/// Otherwise a closed dead-letter topic and large bodies would use up the reserve.
#[test]
fn dead_letters_obey_the_quota() {
    let folder = TempDir::new().unwrap();
    let mut store = Store::open(&config(&folder)).unwrap();
    let refused = dead_letters(1..=50, Kind::Rejected, 10_000);
    for (max_bytes, reserve, setting) in [
        (400 << 10, 0, "spool.max_bytes"),
        (1 << 30, u64::MAX, "spool.reserve"),
    ] {
        store.config.max_bytes = Size(max_bytes);
        store.config.reserve = Size(reserve);
        let error = store.store_dead_letters(&refused, &cursors(0)).unwrap_err();
        assert!(
            matches!(&error, AppendError::Full(why) if why.contains(setting)),
            "{error}"
        );
        assert_eq!(count(&store, "dead_letters"), 0);
    }
    store.config.reserve = Size(0);
    // After a restart, a sink may store its dead letters again.
    for _ in 0..2 {
        store.store_dead_letters(&refused, &cursors(0)).unwrap();
        assert_eq!(count(&store, "dead_letters"), 50);
        assert_eq!(store.dead_letter_bytes, 50 * 10_000);
    }
}

#[test]
fn dead_letters_and_rejected_callbacks_share_a_budget() {
    let folder = TempDir::new().unwrap();
    let config = Config {
        max_dead_letter_bytes: Size(10_000),
        ..config(&folder)
    };
    let mut store = Store::open(&config).unwrap();
    let rejected = |number: u128| {
        let event = event(number, vec![b'x'; 3000]);
        vec![Arc::new(Event {
            kind: Kind::Rejected,
            ..event
        })]
    };
    let full = |outcome: &Result<_, _>| matches!(outcome, Err(AppendError::DeadLettersFull(_)));
    let append = |store: &mut Store, number, confirmed| {
        store
            .append(&rejected(number), &cursors(confirmed))
            .unwrap()
            .remove(0)
    };
    for number in 1..=3 {
        append(&mut store, number, 0).unwrap();
    }
    assert!(full(&append(&mut store, 4, 0)));
    assert_eq!(append(&mut store, 3, 0), Ok(Appended::Repeated(Seq(3))));
    // Events that are not rejected do not count.
    store.append(&events([5], 20_000), &cursors(0)).unwrap()[0]
        .as_ref()
        .unwrap();
    // Forwarded callbacks no longer count.
    store.count_rejected(&cursors(1)).unwrap();
    append(&mut store, 6, 1).unwrap();

    // An event that is refused counts when it is stored; a rejected callback was counted before.
    let refused = store.store_dead_letters(&dead_letters([5], Kind::Group, 2000), &cursors(1));
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, AppendError::DeadLettersFull(_)),
        "{refused}"
    );
    store
        .store_dead_letters(&dead_letters([2], Kind::Rejected, 3000), &cursors(1))
        .unwrap();
    store.count_rejected(&cursors(3)).unwrap();
    store
        .store_dead_letters(&dead_letters([5], Kind::Group, 2000), &cursors(3))
        .unwrap();
    assert!(full(&append(&mut store, 7, 3)));

    // Opening the store counts both again.
    store.save_cursors(&cursors(3)).unwrap();
    let counted = (store.dead_letter_bytes, store.rejected_bytes);
    assert_eq!(counted, (5000, 3000));
    drop(store);
    let store = Store::open(&config).unwrap();
    assert_eq!((store.dead_letter_bytes, store.rejected_bytes), counted);
}

/// An operator can find an event by its contents and its conversation.
#[test]
fn bodies_are_searchable_as_text() {
    let folder = TempDir::new().unwrap();
    let mut store = Store::open(&config(&folder)).unwrap();
    let body = r#"{"messages":[{"seq":130}]}"#;
    store
        .append(&[Arc::new(event(1, body))], &cursors(0))
        .unwrap();
    assert_eq!(count(&store, "events WHERE body LIKE '%\"seq\":130}%'"), 1);
    assert_eq!(count(&store, "events WHERE conversation = '1:group'"), 1);
}
