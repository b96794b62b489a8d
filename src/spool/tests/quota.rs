//! Tests of a full spool.

use super::*;

fn large(number: u128) -> Event {
    Event {
        body: Bytes::from(vec![b'x'; 4 << 10]),
        ..event(number)
    }
}

#[tokio::test]
async fn a_full_spool_refuses_events_and_recovers() {
    let folder = TempDir::new().unwrap();
    let config = Config {
        max_bytes: Size(400 << 10),
        ..config(&folder)
    };
    let spool = open(&config);
    let mut kept = 0;
    let refusal = loop {
        match spool.append(large(kept)).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refusal, AppendError::Full(_)), "{refusal}");
    assert!(kept > 50, "{kept}");
    assert_eq!(spool.status().rows(), u64::try_from(kept).unwrap());
    assert!(spool.status().refusing.is_some());

    // Forwarded events are purged first, although their retention is not over.
    spool.cursor("sink").unwrap().advance(Seq(20));
    assert!(spool.append(large(kept)).await.is_ok());
    let status = spool.status();
    assert_eq!(status.first, Seq(21));
    spool.cursor("sink").unwrap().advance(status.last);
    assert!(spool.append(large(kept + 1)).await.is_ok());
    until("free space", || spool.status().refusing.is_none()).await;
}

#[tokio::test]
async fn forwarded_events_do_not_fill_the_spool() {
    let folder = TempDir::new().unwrap();
    let config = Config {
        max_bytes: Size(400 << 10),
        ..config(&folder)
    };
    let spool = open(&config);
    for number in 0..500 {
        let Appended::New(seq) = spool.append(large(number)).await.unwrap() else {
            panic!("{number} is taken for a repeat");
        };
        spool.cursor("sink").unwrap().advance(seq);
        assert_eq!(spool.status().refusing, None);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(spool.status().refusing, None);
}

#[tokio::test]
async fn events_do_not_use_the_disk_reserve() {
    let folder = TempDir::new().unwrap();
    let config = Config {
        reserve: Size(u64::MAX),
        ..config(&folder)
    };
    let spool = open(&config);
    let refusal = spool.append(event(1)).await.unwrap_err();
    assert!(refusal.to_string().contains("spool.reserve"), "{refusal}");
}

/// More events arrive at once than the quota allows.
#[tokio::test]
async fn a_group_never_exceeds_the_quota() {
    let folder = TempDir::new().unwrap();
    let config = Config {
        max_bytes: Size(400 << 10),
        ..config(&folder)
    };
    let spool = open(&config);
    let appended =
        futures_util::future::join_all((0..500).map(|number| spool.append(large(number))));
    let outcomes = appended.await;
    let kept = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!((50..100).contains(&kept), "{kept}");
    let refused = |outcome: &Result<_, _>| matches!(outcome, Err(AppendError::Full(_)));
    assert_eq!(
        outcomes.iter().filter(|outcome| refused(outcome)).count(),
        500 - kept
    );
    assert!(spool.status().used_bytes <= config.max_bytes.0);
}

/// Forwarded events still use pages, but are purged when the space is needed.
#[tokio::test]
async fn only_unforwarded_events_reduce_the_available_space() {
    let folder = TempDir::new().unwrap();
    let config = Config {
        max_bytes: Size(1 << 20),
        ..config(&folder)
    };
    let spool = open(&config);
    let percent_available = || {
        let status = spool.status();
        assert_eq!(status.capacity_bytes, 1 << 20);
        status.available_bytes * 100 / status.capacity_bytes
    };
    for number in 0..150 {
        spool.append(large(number)).await.unwrap();
    }
    let used = spool.status().used_bytes;
    until("the events to count", || {
        (20..40).contains(&percent_available())
    })
    .await;
    spool.cursor("sink").unwrap().advance(Seq(75));
    until("half of them not to count", || {
        (60..70).contains(&percent_available())
    })
    .await;
    spool.cursor("sink").unwrap().advance(Seq(150));
    until("none of them to count", || percent_available() >= 99).await;
    assert_eq!(spool.status().used_bytes, used);
}

#[tokio::test]
async fn time_until_full_is_known_while_the_spool_fills() {
    let folder = TempDir::new().unwrap();
    let config = Config {
        max_bytes: Size(400 << 10),
        ..config(&folder)
    };
    let spool = open(&config);
    let fill_and_empty = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let lasts = || spool.time_until_full();
        assert_eq!(lasts(), None, "nothing was appended");
        for number in 0..40 {
            spool.append(large(number)).await.unwrap();
        }
        until("a rate", || lasts().is_some_and(|time| !time.is_zero())).await;
        let mut number = 40;
        while spool.append(large(number)).await.is_ok() {
            number += 1;
        }
        until("a full spool", || lasts() == Some(Duration::ZERO)).await;
        let last = spool.status().last;
        spool.cursor("sink").unwrap().advance(last);
        until("an empty spool", || lasts().is_none()).await;
    };
    tokio::select! {
        never = spool.watch() => match never {},
        () = fill_and_empty => {}
    }
}
