//! Tests of what readers get from the event cache, from the file, and from a changed file.

use std::time::Duration;

use tokio::time::timeout;

use super::*;

fn delete_all_rows(config: &Config) {
    let connection = Connection::open(&config.path).unwrap();
    connection.execute("DELETE FROM events", []).unwrap();
}

#[tokio::test]
async fn a_reader_that_keeps_up_reads_from_the_cache() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    append_all(&spool, 1..=60).await;
    delete_all_rows(&config(&folder));
    let mut reader = spool.reader(Seq(59));
    let rows = reader.next(10).await.unwrap();
    assert_eq!(
        rows.iter().map(|row| row.seq).collect::<Vec<_>>(),
        [Seq(60)]
    );
    assert_eq!(spool.status().refusing, None);
}

/// No later row is left that would reveal the gap.
#[tokio::test]
async fn missing_rows_are_damage() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    append_all(&spool, 1..=60).await;
    delete_all_rows(&config(&folder));
    let error = spool.reader(Seq(0)).next(10).await.unwrap_err();
    assert!(
        matches!(error, ReadError::Missing(Seq(1), Seq(60))),
        "{error}"
    );
    assert!(matches!(spool.failed().await, AppendError::Damaged(_)));
}

/// A spool that has failed returns the error to every later caller.
#[tokio::test]
async fn appends_fail_at_once_after_a_final_error() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    append_all(&spool, 1..=3).await;
    let connection = Connection::open(&config(&folder).path).unwrap();
    connection.execute("DROP TABLE events", []).unwrap();
    let failing = async {
        while spool
            .status()
            .refusing
            .is_none_or(|refusing| !refusing.is_final())
        {
            spool.append(event(4)).await.unwrap_err();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(10), failing).await.unwrap();
    let later = timeout(Duration::from_secs(10), spool.append(event(5))).await;
    assert!(later.unwrap().unwrap_err().is_final());
}

#[tokio::test]
async fn a_read_returns_a_bounded_number_of_bytes() {
    let folder = TempDir::new().unwrap();
    let spool = open(&config(&folder));
    for number in 0..60 {
        let event = Event {
            body: Bytes::from(vec![b'x'; 50 << 10]),
            ..event(number)
        };
        spool.append(event).await.unwrap();
    }
    let rows = spool.reader(Seq(0)).next(1000).await.unwrap();
    assert!((20..30).contains(&rows.len()), "{}", rows.len());
}
