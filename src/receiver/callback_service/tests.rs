//! How much of the memory budget a callback takes, and for how long.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Response};
use prometheus_client::registry::Registry;

use super::*;
use crate::receiver::{AuthConfig, Stored};
use crate::setting::Size;

const QUERY: &str = "/?SdkAppid=1400000001&CallbackCommand=Group.CallbackAfterRecallMsg";

/// A disk that hangs: never stores an event in time, and keeps all of them in memory.
#[derive(Default)]
struct Stuck(Mutex<Vec<(Event, OwnedSemaphorePermit)>>);

impl Durability for &'static Stuck {
    async fn keep(&self, event: Event, permit: OwnedSemaphorePermit) -> Result<Stored, NotKept> {
        self.0.lock().unwrap().push((event, permit));
        Err(NotKept::Unavailable(
            "event was not on disk within 1.9 s".to_owned(),
            "use a faster disk",
        ))
    }
}

fn service(permit: u64) -> (Arc<CallbackService<&'static Stuck>>, &'static Stuck) {
    let config = Config {
        max_buffered_bytes: Size(permit),
        ..Config::default()
    };
    let stuck: &'static Stuck = Box::leak(Box::default());
    let auth = Auth::new(&[1_400_000_001], AuthConfig::default());
    let mut registry = Registry::default();
    let upstream = Arc::new(Upstream::new(&mut registry));
    let service = CallbackService::new(config, auth, stuck, upstream, &mut registry);
    (Arc::new(service), stuck)
}

async fn post<B>(service: &Arc<CallbackService<&'static Stuck>>, body: B) -> (u16, String)
where
    B: Body<Data = Bytes, Error = Infallible> + Unpin,
{
    post_to(QUERY, service, body).await
}

async fn post_to<B>(
    uri: &str,
    service: &Arc<CallbackService<&'static Stuck>>,
    body: B,
) -> (u16, String)
where
    B: Body<Data = Bytes, Error = Infallible> + Unpin,
{
    let request = Request::post(uri).body(body).unwrap();
    let peer = Peer::from(SocketAddr::from(([127, 0, 0, 1], 1)));
    let answer: Response<Full<Bytes>> = service.as_ref().answer(request, &peer).await;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn recall(padding: usize) -> String {
    format!(
        r#"{{"CallbackCommand":"Group.CallbackAfterRecallMsg","GroupId":"{}","MsgSeqList":[{{"MsgSeq":1}}]}}"#,
        "a".repeat(padding)
    )
}

#[tokio::test]
async fn a_body_sent_byte_by_byte_needs_no_larger_permit() {
    let (service, stuck) = service(200 << 10);
    let body = recall(100 << 10).into_bytes();
    let pieces = body
        .into_iter()
        .map(|byte| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![byte]))));
    let (status, answer) = post(&service, StreamBody::new(stream::iter(pieces))).await;
    assert!(
        answer.contains("event was not on disk within 1.9 s"),
        "{status} {answer}"
    );
    assert_eq!(stuck.0.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_waiting_event_keeps_its_permit_after_the_answer() {
    for body in [recall(60 << 10), "a".repeat(60 << 10)] {
        let (service, stuck) = service(100 << 10);
        let body = || Full::from(body.clone());
        let (_, answer) = post(&service, body()).await;
        assert!(
            answer.contains("event was not on disk within 1.9 s"),
            "{answer}"
        );
        let (status, answer) = post(&service, body()).await;
        assert_eq!(status, 503);
        assert!(
            answer.contains("request bodies use all of http.max_buffered_bytes"),
            "{answer}"
        );
        stuck.0.lock().unwrap().clear();
        let (_, answer) = post(&service, body()).await;
        assert!(
            answer.contains("event was not on disk within 1.9 s"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn the_permit_covers_an_event_longer_than_its_body() {
    // Base64 encodes three bytes as four.
    let body = || Full::from("\u{1}".repeat(60 << 10));
    for (permit, second) in [
        (
            100 << 10,
            "request bodies use all of http.max_buffered_bytes",
        ),
        (
            130 << 10,
            "request bodies use all of http.max_buffered_bytes",
        ),
        (170 << 10, "event was not on disk within 1.9 s"),
    ] {
        let (service, _) = service(permit);
        let (_, answer) = post(&service, body()).await;
        assert!(
            answer.contains("event was not on disk within 1.9 s"),
            "{permit}: {answer}"
        );
        let (_, answer) = post(&service, body()).await;
        assert!(answer.contains(second), "{permit}: {answer}");
    }
}

#[tokio::test]
async fn permit_covers_the_query_but_the_largest_body_always_fits() {
    let uri = format!("{QUERY}&padding={}", "a".repeat(30 << 10));
    let body = |length: usize| {
        let recall = recall(1);
        let padding = " ".repeat(length - recall.len());
        Full::from(recall + &padding)
    };
    let (service, _) = service(256 << 10);
    let (_, answer) = post_to(&uri, &service, body(256 << 10)).await;
    assert!(answer.contains("event was not on disk"), "{answer}");

    let (service, _) = self::service(100 << 10);
    for expected in [
        "event was not on disk",
        "request bodies use all of http.max_buffered_bytes",
    ] {
        let (_, answer) = post_to(&uri, &service, body(30 << 10)).await;
        assert!(answer.contains(expected), "{answer}");
    }
}
