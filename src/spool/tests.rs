mod quota;
mod readers;

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::runtime::Runtime;

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
async fn what_was_appended_is_read_in_order_and_after_a_reopen() {
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
async fn it_tells_when_the_oldest_event_that_waits_was_appended() {
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
async fn an_end_that_was_asked_for_is_no_failure() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    let another = spool.clone();
    spool.close().await;
    assert_eq!(another.status().refusing, None);
    let refused = another.append(event(1)).await.unwrap_err();
    assert!(refused.to_string().contains("closed"), "{refused}");
}

#[tokio::test]
async fn the_last_handle_takes_the_writer_along() {
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
async fn rows_are_returned_once_and_in_order_however_few_are_wanted_at_once() {
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
async fn many_at_once_share_commits_and_all_are_kept() {
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
async fn a_repeated_id_is_appended_once_also_after_a_reopen() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    let both = tokio::join!(spool.append(event(7)), spool.append(event(7)));
    assert_eq!(both, (Ok(Appended::New(Seq(1))), Ok(Appended::Repeated)));
    spool.close().await;
    let spool = open(&config(&folder));
    assert_eq!(
        append_all(&spool, [7, 8]).await,
        [Appended::Repeated, Appended::New(Seq(2))]
    );
}

#[tokio::test]
async fn without_recent_ids_every_event_is_new_also_within_a_group() {
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
async fn what_an_event_tells_is_read_back() {
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
async fn without_retention_ids_are_recognised_after_their_events_are_gone() {
    let folder = TempDir::new().unwrap();
    let config = Config {
        retention: Period(Duration::ZERO),
        recent_ids: 3,
        ..config(&folder)
    };
    let spool = open(&config);
    append_all(&spool, 1..=5).await;
    spool.cursor("sink").unwrap().advance(Seq(5));
    until("all rows to go", || spool.status().rows() == 0).await;
    spool.close().await;
    assert_eq!(rows_on_disk(&config.path, "events"), 0);
    assert!(rows_on_disk(&config.path, "recent_ids") <= 3);

    let spool = open(&config);
    assert_eq!(
        append_all(&spool, [5, 4, 3, 1]).await,
        [
            Appended::Repeated,
            Appended::Repeated,
            Appended::Repeated,
            Appended::New(Seq(6))
        ]
    );
}

#[tokio::test]
async fn numbers_are_never_reused_when_the_spool_runs_empty() {
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
        until("the row to go", || spool.status().rows() == 0).await;
        spool.close().await;
    }
}

#[tokio::test]
async fn cursors_survive_and_a_new_sink_starts_at_the_oldest_event() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    append_all(&spool, 1..=4).await;
    spool.cursor("sink").unwrap().advance(Seq(3));
    spool.close().await;

    let opened = Spool::open(&config(&folder), &["sink", "late"]).unwrap();
    assert_eq!(opened.spool.cursor("sink").unwrap().position(), Seq(3));
    assert_eq!(opened.spool.cursor("late").unwrap().position(), Seq(0));
    assert_eq!(opened.orphans, []);
    opened.spool.close().await;

    let opened = Spool::open(&config(&folder), &["late"]).unwrap();
    assert_eq!(opened.orphans, [("sink".to_owned(), 1)]);
}

#[tokio::test]
async fn a_sink_that_is_gone_holds_its_events_until_it_is_forgotten() {
    let folder = TempDir::new().unwrap();
    let config = Config {
        retention: Period(Duration::ZERO),
        ..config(&folder)
    };
    let both = Spool::open(&config, &["kafka", "rabbitmq"]).unwrap().spool;
    append_all(&both, 1..=3).await;
    both.cursor("kafka").unwrap().advance(Seq(1));
    both.close().await;

    let spool = Spool::open(&config, &["rabbitmq"]).unwrap().spool;
    spool.cursor("rabbitmq").unwrap().advance(Seq(3));
    until("the first row to go", || spool.status().first == Seq(2)).await;
    spool.close().await;
    assert_eq!(rows_on_disk(&config.path, "events"), 2);

    files::lock(&config.path).unwrap().mark_damaged().unwrap();
    assert!(forget(&config, "kafka").unwrap());
    assert!(!forget(&config, "kafka").unwrap());
    let spool = Spool::open(&config, &["rabbitmq"]).unwrap().spool;
    assert_eq!(spool.report(), &SalvageReport::default());
    until("the rest to go", || spool.status().rows() == 0).await;
}

#[tokio::test]
async fn a_sink_that_went_when_it_had_everything_holds_nothing_and_comes_back_where_it_stood() {
    let folder = TempDir::new().unwrap();
    let config = Config {
        retention: Period(Duration::ZERO),
        ..config(&folder)
    };
    let both = Spool::open(&config, &["kafka", "rabbitmq"]).unwrap().spool;
    append_all(&both, 1..=3).await;
    both.cursor("kafka").unwrap().advance(Seq(3));
    both.cursor("rabbitmq").unwrap().advance(Seq(3));
    both.close().await;
    for last in [6, 9] {
        let opened = Spool::open(&config, &["rabbitmq"]).unwrap();
        assert_eq!(opened.orphans, []);
        append_all(&opened.spool, last - 2..=last).await;
        let last = u64::try_from(last).unwrap();
        opened.spool.cursor("rabbitmq").unwrap().advance(Seq(last));
        until("the rows to go", || opened.spool.status().rows() == 0).await;
        opened.spool.close().await;
    }
    let both = Spool::open(&config, &["kafka", "rabbitmq"]).unwrap().spool;
    assert_eq!(both.cursor("kafka").unwrap().position(), Seq(9));
    append_all(&both, [10]).await;
    let reader = read_all(&both, 3).await;
    assert_eq!(
        reader,
        [(10, "event 10".to_owned())],
        "what it missed is gone"
    );
    both.cursor("rabbitmq").unwrap().advance(Seq(10));
    both.close().await;
    let opened = Spool::open(&config, &["rabbitmq"]).unwrap();
    assert_eq!(opened.orphans, [("kafka".to_owned(), 1)], "it holds again");
}

#[tokio::test]
async fn stdout_holds_nothing_once_it_is_not_the_sink() {
    let folder = TempDir::new().unwrap();
    let spool = Spool::open(&config(&folder), &["stdout"]).unwrap().spool;
    append_all(&spool, [1]).await;
    spool.close().await;
    assert_eq!(
        Spool::open(&config(&folder), &["kafka"]).unwrap().orphans,
        []
    );
}

#[test]
fn a_second_process_is_kept_out() {
    let folder = TempDir::new().unwrap();
    let config = config(&folder);
    let first = Spool::open(&config, &["sink"]).unwrap();
    let error = Spool::open(&config, &["sink"]).unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)), "{error}");
    drop(first);
}

#[test]
fn a_newer_or_foreign_file_is_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let config = config(&folder);
    Runtime::new().unwrap().block_on(open(&config).close());
    let sql = |statement: &str| {
        Connection::open(&config.path)
            .unwrap()
            .execute_batch(statement)
            .unwrap();
    };
    sql("PRAGMA user_version = 99");
    let error = Spool::open(&config, &["sink"]).unwrap_err();
    assert!(
        matches!(error, OpenError::Newer { found: 99, .. }),
        "{error}"
    );

    let config = Config {
        path: folder.path().join("other.db"),
        ..config
    };
    let other = Connection::open(&config.path).unwrap();
    other.execute_batch("CREATE TABLE notes (text)").unwrap();
    other.close().unwrap();
    let before = fs::read(&config.path).unwrap();
    let error = Spool::open(&config, &["sink"]).unwrap_err();
    assert!(matches!(error, OpenError::Foreign(_)), "{error}");
    assert_eq!(fs::read(&config.path).unwrap(), before);

    fs::write(&config.path, "this is a letter, and no database at all").unwrap();
    let error = Spool::open(&config, &["sink"]).unwrap_err();
    assert!(matches!(error, OpenError::Foreign(_)), "{error}");
}

#[test]
fn nobody_else_may_read_the_files() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a/b/spool.db");
    let spool = open(&Config {
        path: path.clone(),
        ..config(&folder)
    });
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for file in fs::read_dir(path.parent().unwrap()).unwrap() {
        let file = file.unwrap().path();
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    drop(spool);
}

#[tokio::test]
async fn a_damaged_row_is_reported_and_counted_once() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    append_all(&spool, 1..=3).await;
    spool.close().await;
    Connection::open(&config(&folder).path)
        .unwrap()
        .execute("UPDATE events SET body = '' WHERE seq = 2", [])
        .unwrap();
    let spool = open(&config(&folder));
    assert_eq!(spool.unreadable(), 0);
    let texts = || async {
        let rows = read_all(&spool, 0).await;
        rows.into_iter().map(|(_, text)| text).collect::<Vec<_>>()
    };
    assert_eq!(texts().await, ["event 1", "lost", "event 3"]);
    assert_eq!(texts().await, ["event 1", "lost", "event 3"]);
    assert_eq!(spool.unreadable(), 1);
}

#[tokio::test]
async fn dead_letters_are_kept_until_somebody_looks() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    let letter = |seq: u64| DeadLetter {
        sink: "sink",
        seq: Seq(seq),
        event: Arc::new(event(seq.into())),
        reason: "too_large",
        detail: "1 MiB".to_owned(),
    };
    let letters = (1..=3).map(letter).collect();
    spool.store_dead_letters(letters).await.unwrap();
    spool.close().await;
    assert_eq!(rows_on_disk(&config(&folder).path, "dead_letters"), 3);
}

/// Opening the file reads neither table in full: the damage is met when their rows are asked for.
#[tokio::test]
async fn damage_that_is_met_after_the_file_was_opened_does_not_stop_a_start() {
    for table in ["gaps", "cursors"] {
        let folder = TempDir::new().unwrap();
        let config = config(&folder);
        let spool = open(&config);
        append_all(&spool, 1..=3).await;
        spool.close().await;
        let connection = Connection::open(&config.path).unwrap();
        let root = format!("SELECT rootpage FROM sqlite_schema WHERE name = '{table}'");
        let root: u64 = connection.query_row(&root, [], |row| row.get(0)).unwrap();
        drop(connection);
        let file = fs::OpenOptions::new().write(true).open(&config.path);
        let page = [0xff; 4096];
        file.unwrap()
            .write_all_at(&page, (root - 1) * 4096)
            .unwrap();

        let spool = open(&config);
        assert!(spool.report().quarantined.is_some(), "{table}");
        let rows = read_all(&spool, 0).await;
        assert_eq!(rows.len(), 3, "{table}: {rows:?}");
        spool.close().await;
    }
}

/// SQLite puts its WAL beside the target of a link, so all other files must be there, too.
#[tokio::test]
async fn two_links_to_one_spool_are_one_spool() {
    let folder = TempDir::new().unwrap();
    let config = config(&folder);
    let linked = |name: &str| {
        let path = folder.path().join(name);
        std::os::unix::fs::symlink(&config.path, &path).unwrap();
        Config {
            path,
            ..config.clone()
        }
    };
    let (one, other) = (linked("one.db"), linked("other.db"));
    let spool = open(&one);
    append_all(&spool, 1..=3).await;
    let error = Spool::open(&other, &["sink"]).unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)), "{error}");
    spool.close().await;
    assert_eq!(open(&other).status().rows(), 3);
    for entry in fs::read_dir(folder.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name.starts_with("spool.db") || !name.contains("db-") && !name.contains(".lock"),
            "{name}"
        );
    }
}

/// They lead to another user's files.
#[test]
fn planted_links_are_not_followed() {
    for name in ["spool.db.lock", "spool.db-wal", "spool.db-shm"] {
        let folder = TempDir::new().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "diary").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join(name)).unwrap();
        // SQLite deletes the WAL of an empty file: then the start succeeds.
        let _ = Spool::open(&config(&folder), &["sink"]);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "diary", "{name}");
    }
    let folder = TempDir::new().unwrap();
    let victim = folder.path().join("victim");
    fs::write(&victim, "diary").unwrap();
    files::lock(&config(&folder).path)
        .unwrap()
        .mark_damaged()
        .unwrap();
    fs::write(folder.path().join("spool.db"), "a damaged file").unwrap();
    let watermark = watermark::Watermark::default();
    files::lock(&config(&folder).path)
        .unwrap()
        .write_watermark(watermark)
        .unwrap();
    std::os::unix::fs::symlink(&victim, folder.path().join("spool.db.salvaged")).unwrap();
    Spool::open(&config(&folder), &["sink"]).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "diary");
}

#[derive(Debug, Clone)]
enum SpoolStep {
    Append(u8),
    Advance(u8),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<SpoolStep>> {
    let step = prop_oneof![
        4 => any::<u8>().prop_map(SpoolStep::Append),
        2 => any::<u8>().prop_map(SpoolStep::Advance),
        1 => Just(SpoolStep::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Compares random histories with a `Vec`: unconfirmed events are always kept, in order and intact.
    #[test]
    fn keeps_what_is_not_confirmed(steps in steps(), keep in any::<bool>()) {
        let runtime = Runtime::new().unwrap();
        let folder = TempDir::new().unwrap();
        let config = Config {
            retention: Period(if keep { Duration::from_secs(3600) } else { Duration::ZERO }),
            ..config(&folder)
        };
        runtime.block_on(async {
            let mut spool = open(&config);
            let mut model: Vec<(u64, String)> = Vec::new();
            let mut confirmed = 0;
            for step in steps {
                match step {
                    SpoolStep::Append(number) => {
                        let number = u128::from(number);
                        let text = format!("event {number}");
                        let known = model.iter().any(|(_, known)| *known == text);
                        match spool.append(event(number)).await.unwrap() {
                            Appended::New(seq) => {
                                assert!(!known);
                                assert_eq!(seq.0, model.len() as u64 + 1);
                                model.push((seq.0, text));
                            }
                            Appended::Repeated => assert!(known),
                        }
                    }
                    SpoolStep::Advance(by) => {
                        confirmed = (confirmed + u64::from(by % 5)).min(model.len() as u64);
                        spool.cursor("sink").unwrap().advance(Seq(confirmed));
                    }
                    SpoolStep::Reopen => {
                        spool.close().await;
                        spool = open(&config);
                        assert_eq!(spool.cursor("sink").unwrap().position(), Seq(confirmed));
                    }
                }
                let unconfirmed = &model[usize::try_from(confirmed).unwrap()..];
                assert_eq!(read_all(&spool, confirmed).await, unconfirmed);
            }
            spool.close().await;
        });
    }
}
