//! Cursors, and what they pin.

use super::*;

#[tokio::test]
async fn cursors_persist_and_new_sinks_start_at_the_oldest_event() {
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
async fn a_removed_sink_pins_its_events_until_forgotten() {
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
    until("the purge", || spool.status().first == Seq(2)).await;
    spool.close().await;
    assert_eq!(rows_on_disk(&config.path, "events"), 2);

    let mut offline = Offline::open(&config).unwrap();
    assert!(offline.forget("kafka").unwrap());
    assert!(!offline.forget("kafka").unwrap());
    drop(offline);
    let spool = Spool::open(&config, &["rabbitmq"]).unwrap().spool;
    assert_eq!(spool.report(), &SalvageReport::default());
    until("the rest to be purged", || spool.status().rows() == 0).await;
}

#[tokio::test]
async fn a_removed_sink_without_backlog_pins_nothing_and_resumes() {
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
        until("the purge", || opened.spool.status().rows() == 0).await;
        opened.spool.close().await;
    }
    let both = Spool::open(&config, &["kafka", "rabbitmq"]).unwrap().spool;
    assert_eq!(both.cursor("kafka").unwrap().position(), Seq(9));
    append_all(&both, [10]).await;
    let reader = read_all(&both, 3).await;
    assert_eq!(
        reader,
        [(10, "event 10".to_owned())],
        "purged events cannot be read"
    );
    both.cursor("rabbitmq").unwrap().advance(Seq(10));
    both.close().await;
    let opened = Spool::open(&config, &["rabbitmq"]).unwrap();
    assert_eq!(opened.orphans, [("kafka".to_owned(), 1)], "it pins again");
}

#[tokio::test]
async fn a_removed_stdout_sink_pins_nothing() {
    let folder = TempDir::new().unwrap();
    let spool = Spool::open(&config(&folder), &["stdout"]).unwrap().spool;
    append_all(&spool, [1]).await;
    spool.close().await;
    assert_eq!(
        Spool::open(&config(&folder), &["kafka"]).unwrap().orphans,
        []
    );
}
