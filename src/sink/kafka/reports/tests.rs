use super::*;

const EVENT: RecordId = RecordId::from_opaque(2);
const DEAD_LETTER: RecordId = RecordId::from_opaque(3);

#[tokio::test]
async fn reports_the_cause_of_a_failure_not_its_consequences() {
    let reports = Reports::default();
    reports.fatal("gapless".to_owned());
    reports
        .inbox()
        .failed(EVENT, RDKafkaErrorCode::PurgeQueue, "purged".to_owned());
    reports.inbox().failed(
        EVENT,
        RDKafkaErrorCode::MessageSizeTooLarge,
        "1 MB".to_owned(),
    );
    let error = reports.next().await.unwrap_err();
    assert!(
        matches!(&error, SessionError::Refused(r) if r.reason == "too_large"),
        "{error}"
    );
    let sent = reports.unless_failed(|| panic!("sent after a failure"));
    assert!(sent.is_none());
}

#[test]
fn a_producer_that_knows_no_broker_has_failed() {
    let reports = Reports::default();
    let own = r#"":0/internal":{"name":":0/internal","source":"internal"}"#;
    for source in ["configured", "learned"] {
        let down = format!(r#""a:9092/1":{{"source":"{source}","state":"DOWN"}}"#);
        reports.stats_raw(format!(r#"{{"brokers":{{{own},{down}}}}}"#).as_bytes());
    }
    reports.stats_raw(b"{}");
    assert!(reports.unless_failed(|| Ok(())).is_some());
    reports.stats_raw(format!(r#"{{"brokers":{{{own}}}}}"#).as_bytes());
    assert!(reports.unless_failed(|| Ok(())).is_none());
}

#[tokio::test]
async fn authorization_failure_of_the_dead_letter_topic_is_a_refusal() {
    let closed = RDKafkaErrorCode::TopicAuthorizationFailed;
    // The next session creates it again.
    let gone = RDKafkaErrorCode::UnknownTopicOrPartition;
    for (id, code, refused) in [
        (DEAD_LETTER, closed, true),
        (EVENT, closed, false),
        (DEAD_LETTER, gone, false),
    ] {
        let reports = Reports::default();
        reports.inbox().failed(id, code, "no".to_owned());
        let error = reports.next().await.unwrap_err();
        assert_eq!(matches!(error, SessionError::Refused(_)), refused);
    }
}

#[tokio::test]
async fn refused_records_are_reported_together_and_in_order() {
    let reports = Reports::default();
    let refusal = || Refusal {
        reason: "too_large",
        detail: String::new(),
    };
    for seq in 1..=3 {
        reports.refuse(Seq(seq), refusal());
    }
    let refused = [1, 2, 3].map(|seq| (Seq(seq), refusal()));
    let expected = ProducerReport::Other(Progress::Refused(refused.into()));
    assert_eq!(reports.next().await.unwrap(), expected);
}

#[tokio::test]
async fn confirms_are_reported_before_a_failure() {
    let reports = Reports::default();
    reports
        .inbox()
        .failed(EVENT, RDKafkaErrorCode::UnknownTopic, "gone".to_owned());
    let partition = Partition {
        dead_letter: false,
        number: 0,
    };
    reports.inbox().confirmed.push((partition, Seq(7)));
    assert_eq!(
        reports.next().await.unwrap(),
        ProducerReport::Confirmed(vec![(partition, Seq(7))])
    );
    assert!(matches!(
        reports.next().await,
        Err(SessionError::Unavailable(..))
    ));
}
