use std::fs;
use std::path::PathBuf;

use rusqlite::params;
use tempfile::TempDir;

use super::*;
use crate::event::{EventFilter, Kind};
use crate::spool::Spool;
use crate::spool::salvage::tests::database;
use crate::spool::saved_cursor::SavedCursor;
use crate::spool::tests::{append_all, config};

/// A spool's file that no relay has open, and the connection that fills it.
struct File {
    folder: TempDir,
    connection: Connection,
}

impl File {
    /// Contains events 1 to `last`. As in a real spool, readers and the writer do not wait for each other.
    fn with_events(last: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let connection = database::create(&folder.path().join("spool.db"));
        let set = "PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0";
        connection.execute_batch(set).unwrap();
        let file = Self { folder, connection };
        file.append(1..=last);
        file
    }

    fn append(&self, seqs: impl IntoIterator<Item = u64>) {
        self.connection.execute_batch("BEGIN").unwrap();
        for seq in seqs {
            database::insert(&self.connection, &database::event(seq));
        }
        self.connection.execute_batch("COMMIT").unwrap();
    }

    fn execute(&self, sql: &str) {
        self.connection.execute_batch(sql).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("spool.db")
    }

    fn inspector(&self) -> Inspector {
        Inspector::open(&config(&self.folder)).unwrap()
    }

    /// Whether the whole WAL can be checkpointed now: no read transaction is open.
    fn is_checkpointed(&self) -> bool {
        let truncate = "PRAGMA wal_checkpoint(TRUNCATE)";
        self.connection
            .busy_timeout(std::time::Duration::ZERO)
            .unwrap();
        let busy: bool = self
            .connection
            .query_row(truncate, [], |row| row.get(0))
            .unwrap();
        !busy
    }
}

const ORDERS: [SearchOrder; 2] = [SearchOrder::NewestFirst, SearchOrder::OldestFirst];

fn in_order(order: SearchOrder) -> EventQuery {
    EventQuery {
        order,
        ..EventQuery::default()
    }
}

/// The numbers that a search finds; `between` is called after each piece.
fn numbers(
    inspector: &Inspector,
    query: EventQuery,
    mut between: impl FnMut(&SearchPiece),
) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut search = inspector.search(query).unwrap();
    while let Some(piece) = search.next_piece().unwrap() {
        between(&piece);
        numbers.extend(piece.found.into_iter().map(|event| event.seq.0));
    }
    numbers
}

fn find(inspector: &Inspector, query: EventQuery) -> Vec<u64> {
    numbers(inspector, query, |_| {})
}

/// More events than one piece reads.
const MANY: u64 = 2000;

#[test]
fn a_search_finds_every_event_once_in_both_orders() {
    let file = File::with_events(MANY);
    let inspector = file.inspector();
    for order in ORDERS {
        let mut pieces = 0;
        let mut found = numbers(&inspector, in_order(order), |piece| {
            pieces += 1;
            assert_eq!(piece.total, MANY);
            assert!(piece.found.len() as u64 <= piece.searched);
        });
        assert!(pieces >= 3, "{pieces}");
        if order == SearchOrder::NewestFirst {
            found.reverse();
        }
        assert!(
            found.iter().copied().eq(1..=MANY),
            "{order:?}: {}",
            found.len()
        );
    }
}

#[test]
fn progress_ends_at_the_total_even_if_nothing_is_found() {
    let file = File::with_events(MANY);
    for order in ORDERS {
        let query = EventQuery {
            id: Some(Uuid::nil()),
            ..in_order(order)
        };
        let mut progress = Vec::new();
        let found = numbers(&file.inspector(), query, |piece| {
            progress.push(piece.searched);
        });
        assert!(found.is_empty());
        assert!(progress.is_sorted(), "{progress:?}");
        assert_eq!(progress.last(), Some(&MANY));
    }
}

#[test]
fn the_wal_can_be_checkpointed_between_two_pieces() {
    let file = File::with_events(MANY);
    let inspector = file.inspector();
    let mut appended = MANY;
    let found = numbers(&inspector, EventQuery::default(), |_| {
        appended += 1;
        file.append([appended]);
        assert!(file.is_checkpointed());
    });
    assert!(appended > MANY);
    assert_eq!(found.len() as u64, MANY, "none that was appended meanwhile");
}

#[test]
fn what_stays_is_found_once_although_others_are_purged_meanwhile() {
    let file = File::with_events(MANY);
    for (order, kept_from) in ORDERS.into_iter().zip([1001, 1201]) {
        let mut purged = false;
        let found = numbers(&file.inspector(), in_order(order), |_| {
            if !purged {
                file.execute(&format!("DELETE FROM events WHERE seq < {kept_from}"));
                purged = true;
            }
        });
        let mut kept: Vec<_> = found.into_iter().filter(|seq| *seq >= kept_from).collect();
        if order == SearchOrder::NewestFirst {
            kept.reverse();
        }
        assert!(kept.into_iter().eq(kept_from..=MANY), "{order:?}");
    }
}

/// Appends events of several conversations: numbers 1 to 4.
fn conversations() -> File {
    let file = File::with_events(0);
    for (seq, kind, conversation, subject) in [
        (1, Kind::Group, "7:g", Some("g")),
        (2, Kind::Group, "7:t", Some("g")),
        (3, Kind::C2c, "8:a:b", Some("a:b")),
        (4, Kind::Rejected, "7", None),
    ] {
        let mut row = database::event(seq);
        row.appended_at += i64::try_from(seq).unwrap();
        row.event.kind = kind;
        row.event.conversation = conversation.into();
        row.event.subject = subject.map(Into::into);
        database::insert(&file.connection, &row);
    }
    file
}

#[test]
fn a_search_selects_by_every_field() {
    let file = conversations();
    let inspector = file.inspector();
    let of = |filter| EventQuery {
        filter,
        ..EventQuery::default()
    };
    let at = |millis: u64| UnixMillis::new(1_800_000_000_000 + millis);
    for (query, expected) in [
        (EventQuery::default(), vec![4, 3, 2, 1]),
        (
            of(EventFilter {
                group: Some("g".into()),
                ..EventFilter::default()
            }),
            vec![2, 1],
        ),
        (
            of(EventFilter {
                kind: Some(Kind::Rejected),
                ..EventFilter::default()
            }),
            vec![4],
        ),
        (
            of(EventFilter {
                app: Some(8),
                ..EventFilter::default()
            }),
            vec![3],
        ),
        (
            EventQuery {
                since: at(3),
                ..EventQuery::default()
            },
            vec![4, 3],
        ),
        (
            EventQuery {
                until: at(3),
                ..EventQuery::default()
            },
            vec![3, 2, 1],
        ),
        (
            EventQuery {
                since: at(2),
                until: at(2),
                ..EventQuery::default()
            },
            vec![2],
        ),
        (
            EventQuery {
                first: Some(Seq(2)),
                last: Some(Seq(3)),
                ..EventQuery::default()
            },
            vec![3, 2],
        ),
        (
            EventQuery {
                first: Some(Seq(5)),
                ..EventQuery::default()
            },
            vec![],
        ),
        (
            EventQuery {
                last: Some(Seq(0)),
                ..EventQuery::default()
            },
            vec![],
        ),
        (
            EventQuery {
                id: Some(Uuid::from_u128(3)),
                ..EventQuery::default()
            },
            vec![3],
        ),
    ] {
        assert_eq!(find(&inspector, query.clone()), expected, "{query:?}");
    }
}

#[test]
fn damaged_rows_are_reported_among_the_others() {
    let file = conversations();
    // A column that the search compares, the body, and the type of a column.
    file.execute("UPDATE events SET kind = 9 WHERE seq = 1");
    file.execute("UPDATE events SET body = 'forged' WHERE seq = 2");
    let inspector = file.inspector();
    let mut search = inspector.search(EventQuery::default()).unwrap();
    let piece = search.next_piece().unwrap().unwrap();
    let readable = piece
        .found
        .iter()
        .map(|found| (found.seq.0, found.stored.is_some()));
    assert_eq!(
        readable.collect::<Vec<_>>(),
        [(4, true), (3, true), (2, false), (1, false)]
    );
    let elsewhere = EventQuery {
        filter: EventFilter {
            account: Some("o".into()),
            ..EventFilter::default()
        },
        ..EventQuery::default()
    };
    assert_eq!(find(&inspector, elsewhere), [1], "it could be any event");
}

#[test]
fn the_overview_counts_kept_lost_and_waiting_events() {
    let file = File::with_events(20);
    file.execute("DELETE FROM events WHERE seq <= 4 OR seq BETWEEN 8 AND 9 OR seq = 15");
    file.execute("INSERT INTO gaps VALUES (2, 3, 1), (8, 9, 1), (15, 15, 0)");
    for (sink, seq, pins) in [("kafka", 10, true), ("rabbitmq", 20, false)] {
        let cursor = SavedCursor {
            seq: Seq(seq),
            pins,
        };
        cursor.save(sink, &file.connection).unwrap();
    }
    file.execute("INSERT INTO cursors VALUES ('broken', 3, 1, 12345)");
    fs::write(
        file.folder.path().join("spool.db.damaged-20261124T101530Z"),
        "",
    )
    .unwrap();
    let overview = file.inspector().overview().unwrap();
    assert_eq!((overview.first, overview.last), (Seq(5), Seq(20)));
    assert_eq!(overview.kept(), 13);
    assert_eq!(overview.kept_within(Seq(10), overview.last), 9);
    assert_eq!(overview.kept_within(Seq(10), Seq(10)), 0);
    assert_eq!(overview.kept_within(Seq(0), Seq(7)), 3);
    assert_eq!(overview.kept_within(Seq(30), overview.last), 0);
    assert_eq!(
        overview.lost().collect::<Vec<_>>(),
        [(Seq(2), Seq(3)), (Seq(8), Seq(9))]
    );
    let cursor = |sink: &str| overview.cursors[sink].map(|cursor| (cursor.seq.0, cursor.pins));
    assert_eq!(cursor("kafka"), Some((10, true)));
    assert_eq!(cursor("rabbitmq"), Some((20, false)));
    assert_eq!(cursor("broken"), None);
    let appended_at = UnixMillis::new(1_800_000_000_000);
    assert_eq!(overview.oldest_appended_at, appended_at);
    assert_eq!(overview.newest_appended_at, appended_at);
    assert!(overview.used_bytes >= 4096 * 7);
    assert_eq!(overview.quarantined.len(), 1);
    let purgeable = |seq| overview.purgeable_bytes(Seq(seq));
    assert_eq!(purgeable(4), 0);
    assert_eq!(purgeable(10), overview.used_bytes * 4 / 13);
    assert_eq!(purgeable(20), overview.used_bytes);
}

#[test]
fn dead_letters_are_not_purged_to_make_space() {
    let file = File::with_events(4);
    file.execute(
        "INSERT INTO dead_letters SELECT 'kafka', seq, time, 'too_large', 'why', id, kind, conversation, subject,
         group_type, time, 'twelve bytes' FROM events WHERE seq <= 2",
    );
    let overview = file.inspector().overview().unwrap();
    assert_eq!(overview.dead_letter_bytes, 24);
    assert_eq!(overview.purgeable_bytes(Seq(4)), overview.used_bytes - 24);
}

#[test]
fn an_empty_spool_has_neither_events_nor_times() {
    let file = File::with_events(0);
    file.execute("UPDATE identity SET next_seq = 8");
    let inspector = file.inspector();
    let overview = inspector.overview().unwrap();
    assert_eq!((overview.first, overview.last), (Seq(8), Seq(7)));
    assert_eq!((overview.kept(), overview.oldest_appended_at), (0, None));
    assert_eq!(inspector.appended_after(Seq(0)).unwrap(), None);
    assert!(find(&inspector, EventQuery::default()).is_empty());
}

#[test]
fn ids_of_purged_events_are_found() {
    let file = File::with_events(1);
    let id = Uuid::from_u128(77);
    file.connection
        .execute("INSERT INTO recent_ids VALUES (9, ?1)", [id.as_bytes()])
        .unwrap();
    let inspector = file.inspector();
    assert_eq!(inspector.purged(id).unwrap(), Some(Seq(9)));
    assert_eq!(inspector.purged(Uuid::from_u128(78)).unwrap(), None);
}

#[test]
fn dead_letters_come_in_pages_and_can_be_selected() {
    let file = File::with_events(0);
    let body = "x".repeat(PAGE_BYTES / 4);
    for (sink, seq) in [("kafka", 1_u64), ("kafka", 2), ("rabbitmq", 2)]
        .into_iter()
        .chain((3..10).map(|seq| ("rabbitmq", seq)))
    {
        file.connection
            .execute(
                "INSERT INTO dead_letters VALUES (?1, ?2, 5, 'too_large', 'why', ?3, 0, '1:group', 'group', NULL, 7, ?4)",
                params![sink, seq, Uuid::from_u128(seq.into()).as_bytes(), body],
            )
            .unwrap();
    }
    let inspector = file.inspector();
    let read = |query: DeadLetterQuery| {
        let mut read = Vec::new();
        for page in inspector.dead_letters(query) {
            let page = page.unwrap();
            assert!((1..=4).contains(&page.len()));
            read.extend(
                page.iter()
                    .map(|dead_letter| (dead_letter.sink.clone(), dead_letter.seq.0)),
            );
        }
        read
    };
    let all = read(DeadLetterQuery::default());
    assert_eq!(all.len(), 10);
    assert!(all.is_sorted());
    let of_event = DeadLetterQuery {
        seq: Some(Seq(2)),
        ..DeadLetterQuery::default()
    };
    let both = [("kafka".to_owned(), 2), ("rabbitmq".to_owned(), 2)];
    assert_eq!(read(of_event), both);
    let last = DeadLetterQuery {
        sink: Some("rabbitmq".to_owned()),
        id: Some(Uuid::from_u128(9)),
        ..DeadLetterQuery::default()
    };
    assert_eq!(read(last), [("rabbitmq".to_owned(), 9)]);
    let letters = inspector
        .dead_letters(DeadLetterQuery::default())
        .next()
        .unwrap()
        .unwrap();
    assert_eq!(
        (&*letters[0].reason, &*letters[0].detail),
        ("too_large", "why")
    );
    assert_eq!(letters[0].event.body.len(), body.len());
}

const PAGE_BYTES: usize = 1 << 20;

#[tokio::test]
async fn reads_beside_an_open_spool() {
    let folder = TempDir::new().unwrap();
    let spool = Spool::open(&config(&folder), &["sink"]).unwrap().spool;
    append_all(&spool, 1..=3).await;
    let inspector = Inspector::open(&config(&folder)).unwrap();
    assert_eq!(find(&inspector, EventQuery::default()), [3, 2, 1]);
    append_all(&spool, 4..=5).await;
    assert_eq!(find(&inspector, EventQuery::default()), [5, 4, 3, 2, 1]);
    spool.close().await;
    assert_eq!(inspector.overview().unwrap().kept(), 5);
}

fn open_error(folder: &TempDir) -> OpenError {
    Inspector::open(&config(folder)).unwrap_err()
}

#[test]
fn a_file_that_is_missing_foreign_or_newer_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("spool.db");
    assert!(matches!(open_error(&folder), OpenError::Missing(_)));
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none());

    fs::write(&path, "a diary\n".repeat(1000)).unwrap();
    assert!(matches!(open_error(&folder), OpenError::Foreign(_)));
    fs::remove_file(&path).unwrap();
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE diary (day)")
        .unwrap();
    assert!(matches!(open_error(&folder), OpenError::Foreign(_)));

    let newer = File::with_events(1);
    newer.execute("PRAGMA user_version = 2");
    let error = open_error(&newer.folder);
    assert!(
        matches!(error, OpenError::Newer { found: 2, .. }),
        "{error}"
    );
}

#[test]
fn a_damaged_file_is_left_to_the_next_start() {
    let file = File::with_events(5);
    assert!(file.is_checkpointed());
    let lock = files::lock(&file.path(), std::time::Duration::ZERO).unwrap();
    lock.write_watermark(Watermark::default()).unwrap();
    let (folder, path) = (&file.folder, file.path());
    drop(file.connection);
    for damaged in ["", "noise"] {
        fs::write(&path, damaged.repeat(5000)).unwrap();
        let error = open_error(folder);
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("the next start"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), damaged.repeat(5000));
    }
}

#[test]
fn damage_that_a_search_meets_is_an_error_with_advice() {
    let file = File::with_events(2000);
    assert!(file.is_checkpointed());
    let folder = file.folder;
    drop(file.connection);
    let path = folder.path().join("spool.db");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 8192 * 4096;
    bytes[middle..middle + 4096].fill(7);
    fs::write(&path, bytes).unwrap();
    let inspector = Inspector::open(&config(&folder)).unwrap();
    let mut search = inspector.search(EventQuery::default()).unwrap();
    let error = loop {
        match search.next_piece() {
            Ok(piece) => assert!(piece.is_some(), "the search meets no damage"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, InspectError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("the next start"), "{error}");
}
