use bytes::Bytes;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::event::Kind;
use crate::spool::tests::config;

/// An event of so many bytes for each number.
pub(super) fn events(numbers: impl IntoIterator<Item = u128>, length: usize) -> Vec<Event> {
    let event = |number| Event {
        kind: Kind::Recalled,
        id: Uuid::from_u128(number),
        bytes: Bytes::from(vec![b'x'; length]),
    };
    numbers.into_iter().map(event).collect()
}

/// Those of one sink, which has confirmed everything up to `seq`.
pub(super) fn cursors(seq: u64) -> BTreeMap<String, Cursor> {
    [("sink".to_owned(), Cursor::new(Seq(seq)))].into()
}

#[test]
fn what_fails_half_way_leaves_nothing_behind_and_is_not_in_the_way() {
    let folder = TempDir::new().unwrap();
    let mut store = Store::open(&config(&folder)).unwrap();
    let gap = Gap {
        first: Seq(1),
        last: Seq(3),
        lost: true,
    };
    let error = store
        .transaction(|connection| {
            gap.insert(connection)?;
            gap.insert(connection)
        })
        .unwrap_err();
    assert!(matches!(error, AppendError::Io(_)), "{error}");
    assert_eq!(store.lost(), 0);
    store
        .transaction(|connection| gap.insert(connection))
        .unwrap();
    assert_eq!(store.lost(), 3);
}

#[test]
fn a_probe_tells_whether_something_can_be_written() {
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
