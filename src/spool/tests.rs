mod cursors;
mod history;
mod on_disk;
mod quota;
mod readers;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::event::Kind;
use crate::setting::{Period, Size};

pub(super) fn config(folder: &TempDir) -> Config {
    Config {
        path: folder.path().join("spool.db"),
        reserve: Size(0),
        ..Config::default()
    }
}

fn event(number: u128) -> Event {
    crate::event::tests::event(number, format!("event {number}"))
}

fn open(config: &Config) -> Spool {
    Spool::open(config, &["sink"]).unwrap().spool
}

pub(super) async fn append_all(
    spool: &Spool,
    numbers: impl IntoIterator<Item = u128>,
) -> Vec<Appended> {
    let mut outcomes = Vec::new();
    for number in numbers {
        outcomes.push(spool.append(event(number)).await.unwrap());
    }
    outcomes
}

async fn read_all(spool: &Spool, after: u64) -> Vec<(u64, String)> {
    let last = spool.status().last;
    let mut reader = spool.reader(Seq(after));
    let mut found = Vec::new();
    while found.last().is_none_or(|(seq, _)| *seq < last.0) && last.0 > after {
        let read = tokio::time::timeout(Duration::from_secs(5), reader.next(1000));
        for row in read.await.expect("events within 5 s").unwrap() {
            let text = row.event.map_or("lost".into(), |event| event.body.to_vec());
            found.push((row.seq.0, String::from_utf8(text).unwrap()));
        }
    }
    found
}

pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "timed out waiting for {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn rows_on_disk(path: &Path, table: &str) -> u64 {
    Connection::open(path)
        .unwrap()
        .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
            row.get(0)
        })
        .unwrap()
}

#[tokio::test]
async fn reads_events_in_order_and_after_reopening() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    let outcomes = append_all(&spool, 1..=3).await;
    assert_eq!(outcomes, [1, 2, 3].map(|seq| Appended::New(Seq(seq))));
    let expected: Vec<_> = (1..=3).map(|seq| (seq, format!("event {seq}"))).collect();
    assert_eq!(read_all(&spool, 0).await, expected);
    spool.close().await;

    let spool = open(&config(&folder));
    assert_eq!(read_all(&spool, 0).await, expected);
    assert_eq!(append_all(&spool, [4]).await, [Appended::New(Seq(4))]);
}

#[tokio::test]
async fn appended_after_returns_the_oldest_append_time() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    assert_eq!(spool.appended_after(Seq(0)).unwrap(), None);
    let before = UnixMillis::now();
    append_all(&spool, 1..=2).await;
    let appended = spool.appended_after(Seq(0)).unwrap().unwrap();
    assert!(
        (before..=UnixMillis::now()).contains(&appended),
        "{appended}"
    );
    assert!(spool.appended_after(Seq(1)).unwrap().unwrap() >= appended);
    assert_eq!(spool.appended_after(Seq(2)).unwrap(), None);
}

#[tokio::test]
async fn closing_is_not_reported_as_a_failure() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    let another = spool.clone();
    spool.close().await;
    assert_eq!(another.status().refusing, None);
    let refused = another.append(event(1)).await.unwrap_err();
    assert!(refused.to_string().contains("closed"), "{refused}");
}

#[tokio::test]
async fn dropping_the_last_handle_stops_the_writer() {
    let folder = TempDir::new().unwrap();
    let config = config(&folder);
    let spool = open(&config);
    let another = spool.clone();
    append_all(&spool, 1..=3).await;
    drop(spool);
    append_all(&another, 4..=5).await;
    drop(another);
    let opened =
        || Spool::open(&config, &["sink"]).is_ok_and(|opened| opened.spool.status().rows() == 5);
    until("the file to be free", opened).await;
}

#[tokio::test]
async fn reader_returns_rows_once_in_order_for_any_limit() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    let appends = (1..=2500).map(|number| spool.append(event(number)));
    futures_util::future::join_all(appends).await;
    let mut reader = spool.reader(Seq(0));
    let mut seqs = Vec::new();
    while seqs.len() < 2500 {
        let limit = 1 + seqs.len() % 7 * 100;
        let rows = reader.next(limit).await.unwrap();
        assert!((1..=limit).contains(&rows.len()));
        seqs.extend(rows.iter().map(|row| row.seq.0));
        assert_eq!(reader.position().0, *seqs.last().unwrap());
    }
    assert_eq!(seqs, (1..=2500).collect::<Vec<_>>());
}

#[tokio::test]
async fn concurrent_appends_are_all_kept() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    let appends = (0..500).map(|number| {
        let spool = spool.clone();
        async move { spool.append(event(number)).await }
    });
    let outcomes = futures_util::future::join_all(appends).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(spool.status().rows(), 500);
    assert_eq!(read_all(&spool, 0).await.len(), 500);
}

#[tokio::test]
async fn a_repeated_id_is_appended_once_even_after_reopening() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    let both = tokio::join!(spool.append(event(7)), spool.append(event(7)));
    assert_eq!(
        both,
        (Ok(Appended::New(Seq(1))), Ok(Appended::Repeated(Seq(1))))
    );
    spool.close().await;
    let spool = open(&config(&folder));
    assert_eq!(
        append_all(&spool, [7, 8]).await,
        [Appended::Repeated(Seq(1)), Appended::New(Seq(2))]
    );
}

#[tokio::test]
async fn without_recent_ids_repeated_events_are_appended() {
    let folder = TempDir::new().unwrap();
    let config = Config {
        recent_ids: 0,
        ..config(&folder)
    };
    let spool = open(&config);
    let both = tokio::join!(spool.append(event(7)), spool.append(event(7)));
    assert_eq!(both, (Ok(Appended::New(Seq(1))), Ok(Appended::New(Seq(2)))));
}

#[tokio::test]
async fn every_attribute_of_an_event_is_read_back() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    let kinds = [
        Kind::Group,
        Kind::C2c,
        Kind::OfficialAccount,
        Kind::Rejected,
    ];
    let event = |(number, kind): (u128, Kind)| Event {
        kind,
        conversation: format!("7:{number}").into(),
        subject: number.is_multiple_of(2).then(|| "a:b".into()),
        group_type: (!number.is_multiple_of(2)).then(|| "Public".into()),
        time: UnixMillis::new(u64::try_from(number).unwrap()).unwrap(),
        ..event(number)
    };
    let events: Vec<Event> = (1..).zip(kinds).map(event).collect();
    for event in &events {
        spool.append(event.clone()).await.unwrap();
    }
    spool.close().await;
    let spool = open(&config(&folder));
    let rows = spool.reader(Seq(0)).next(10).await.unwrap();
    let read = rows
        .iter()
        .map(|row| (**row.event.as_ref().unwrap()).clone());
    assert_eq!(read.collect::<Vec<_>>(), events);
    assert_eq!(spool.event(Seq(3)).unwrap().as_ref(), Some(&events[2]));
}

#[tokio::test]
async fn ids_are_recognised_after_their_events_were_purged() {
    let folder = TempDir::new().unwrap();
    let config = Config {
        retention: Period(Duration::ZERO),
        recent_ids: 3,
        ..config(&folder)
    };
    let spool = open(&config);
    append_all(&spool, 1..=5).await;
    spool.cursor("sink").unwrap().advance(Seq(5));
    until("all rows to be purged", || spool.status().rows() == 0).await;
    spool.close().await;
    assert_eq!(rows_on_disk(&config.path, "events"), 0);
    assert!(rows_on_disk(&config.path, "recent_ids") <= 3);

    let spool = open(&config);
    assert_eq!(
        append_all(&spool, [5, 4, 3, 1]).await,
        [
            Appended::Repeated(Seq(5)),
            Appended::Repeated(Seq(4)),
            Appended::Repeated(Seq(3)),
            Appended::New(Seq(6))
        ]
    );
}

#[tokio::test]
async fn seqs_are_never_reused_after_the_spool_was_empty() {
    let folder = TempDir::new().unwrap();
    let config = Config {
        retention: Period(Duration::ZERO),
        recent_ids: 0,
        ..config(&folder)
    };
    for round in 1..=3 {
        let spool = open(&config);
        assert_eq!(append_all(&spool, [1]).await, [Appended::New(Seq(round))]);
        spool.cursor("sink").unwrap().advance(Seq(round));
        until("the row to be purged", || spool.status().rows() == 0).await;
        spool.close().await;
    }
}

#[tokio::test]
async fn dead_letters_are_stored_on_disk() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    let dead_letter = |seq: u64| DeadLetter {
        sink: "sink",
        seq: Seq(seq),
        event: Arc::new(event(seq.into())),
        reason: "too_large",
        detail: "1 MiB".to_owned(),
    };
    let dead_letters = (1..=3).map(&dead_letter).collect();
    assert_eq!(spool.dead_letters(), 0);
    spool.store_dead_letters(dead_letters).await.unwrap();
    until("the count", || spool.dead_letters() == 3).await;
    let again = vec![dead_letter(3)];
    spool.store_dead_letters(again).await.unwrap();
    spool.close().await;
    assert_eq!(open(&config(&folder)).dead_letters(), 3);
    assert_eq!(rows_on_disk(&config(&folder).path, "dead_letters"), 3);
}
