//! Tests against a stub relay.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::CONNECTION;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use std::fs;

use super::*;

const OK: &str = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

#[derive(Debug, clap::Parser)]
struct TestCli {
    #[command(flatten)]
    args: SendArgs,
}

/// How the stub relay treats its `n`th callback.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Answer,
    AnswerAndClose,
    Refuse,
    Reject,
    Stall,
    Hang,
}

/// What the stub relay has received: each body, and the connection that it arrived on.
type Seen = Arc<Mutex<Vec<(usize, serde_json::Value)>>>;

/// Starts a stub relay that treats each callback as `does` says until the returned set is dropped.
async fn relay(does: fn(usize) -> Does) -> (String, Seen, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let seen = Seen::default();
    let mut tasks = JoinSet::new();
    let shared = Arc::clone(&seen);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        for connection in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = Arc::clone(&shared);
            connections.spawn(async move {
                let service = service_fn(|request: Request<Incoming>| {
                    let seen = Arc::clone(&seen);
                    async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let body = serde_json::from_slice(&body).unwrap_or_default();
                        let number = {
                            let mut seen = seen.lock().unwrap();
                            seen.push((connection, body));
                            seen.len() - 1
                        };
                        Ok::<_, Infallible>(answer(does(number)).await)
                    }
                });
                // It does not matter if the other side has closed the connection.
                let _ = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    (url, seen, tasks)
}

async fn answer(does: Does) -> Response<Full<Bytes>> {
    let response = Response::builder();
    match does {
        Does::Answer => response.body(OK.into()),
        Does::AnswerAndClose => response.header(CONNECTION, "close").body(OK.into()),
        Does::Refuse => response.status(403).body(OK.replace("OK", "FAIL").into()),
        Does::Reject => {
            let rude = r#"{"ActionStatus":"OK","ErrorInfo":"rude","ErrorCode":10100}"#;
            response.body(rude.into())
        }
        Does::Stall => {
            sleep(Duration::from_millis(200)).await;
            response.body(OK.into())
        }
        Does::Hang => std::future::pending().await,
    }
    .unwrap()
}

async fn send(url: &str, options: &[&str]) -> anyhow::Result<()> {
    send_and_read(url, options).await.0
}

/// Like [`send`], but also returns what was printed.
async fn send_and_read(url: &str, options: &[&str]) -> (anyhow::Result<()>, String) {
    let fixed = [
        "send",
        "--sdk-app-id",
        "1400000001",
        "--token",
        "xxxxyyyy",
        "--url",
        url,
    ];
    let cli = TestCli::try_parse_from(fixed.iter().chain(options)).unwrap();
    let mut out = Vec::new();
    let result = super::send(cli.args, &mut out).await;
    (result, String::from_utf8(out).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callbacks_of_a_conversation_arrive_in_order_on_one_connection() {
    let (url, seen, _relay) = relay(|_| Does::Answer).await;
    send(
        &url,
        &[
            "-n",
            "1000",
            "-c",
            "4",
            "--conversations",
            "10",
            "--first-seq",
            "1",
        ],
    )
    .await
    .unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 1000);
    let mut last = HashMap::new();
    for (connection, body) in seen.iter() {
        let seq = body["MsgSeqList"][0]["MsgSeq"].as_u64().unwrap();
        let (before, on) = last
            .insert(body["GroupId"].to_string(), (seq, *connection))
            .unwrap_or((0, *connection));
        assert_eq!((seq, connection), (before + 1, &on), "{body}");
    }
    assert_eq!(last.len(), 10);
}

#[tokio::test]
async fn a_connection_that_the_relay_closes_costs_no_callback() {
    let (url, seen, _relay) = relay(|number| match number {
        1 | 2 => Does::AnswerAndClose,
        _ => Does::Answer,
    })
    .await;
    send(&url, &["-n", "5", "--command", "all"]).await.unwrap();
    let connections: Vec<_> = seen.lock().unwrap().iter().map(|(on, _)| *on).collect();
    assert_eq!(connections, [0, 0, 1, 2, 2]);
}

#[tokio::test]
async fn each_callback_that_is_not_answered_ok_is_counted_and_sent_once() {
    let (url, seen, _relay) = relay(|number| match number {
        1 => Does::Refuse,
        2 => Does::Hang,
        _ => Does::Answer,
    })
    .await;
    let options = ["-n", "4", "--timeout", "100ms"];
    let (result, printed) = send_and_read(&url, &options).await;
    assert_eq!(
        result.unwrap_err().to_string(),
        "2 of 4 callbacks were not answered OK; the summary says why"
    );
    assert!(
        printed.starts_with(
            "sent      4\nOK        2\nfailed    2\n        1  403 FAIL/0\n        1  timed out\n"
        ),
        "{printed}"
    );
    assert_eq!(seen.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn a_relay_that_is_not_there_is_said_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = send(&format!("http://{address}/"), &["-n", "1000000"])
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no connection to {address} (--url; is the relay running?)")
    );
    assert!(format!("{error:#}").contains("cannot connect"), "{error:#}");
}

#[tokio::test]
async fn a_rate_is_kept_and_a_duration_ends_it() {
    let (url, seen, _relay) = relay(|_| Does::Answer).await;
    let start = Instant::now();
    send(&url, &["--rate", "100", "--duration", "300ms"])
        .await
        .unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300));
    let sent = seen.lock().unwrap().len();
    assert!((10..=31).contains(&sent), "{sent} sent");
}

#[tokio::test]
async fn callbacks_held_up_by_an_earlier_one_are_measured_from_when_they_were_due() {
    let (url, _seen, _relay) = relay(|number| match number {
        0 => Does::Stall,
        _ => Does::Answer,
    })
    .await;
    let (result, printed) = send_and_read(&url, &["--rate", "100", "-n", "10"]).await;
    result.unwrap();
    let (_, rest) = printed.split_once("p50 ").unwrap();
    let (p50, _) = rest.split_once("ms").unwrap();
    assert!(p50.parse::<f64>().unwrap() >= 100.0, "{printed}");
}

#[tokio::test]
async fn callbacks_held_up_until_the_end_are_counted() {
    let (url, seen, _relay) = relay(|number| match number {
        10 => Does::Hang,
        _ => Does::Answer,
    })
    .await;
    let options = ["--rate", "100", "--duration", "500ms", "--json"];
    let (result, printed) = send_and_read(&url, &options).await;
    assert!(result.is_err(), "{printed}");
    let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
    // 41 were due after 400 ms; the one that hung has held up the others.
    assert_eq!(report["sent"], seen.lock().unwrap().len(), "{report}");
    assert_eq!(report["sent"], 11, "{report}");
    let unsent = report["unsent"].as_u64().unwrap();
    assert!((30..=60).contains(&unsent), "{report}");
    assert_eq!(report["outcomes"]["timed_out"], 1, "{report}");
}

#[tokio::test]
async fn with_a_backend_its_answers_are_right_but_not_to_a_recall() {
    let (url, _seen, _relay) = relay(|_| Does::Reject).await;
    for (options, failed, answers) in [
        (&["--command", "before", "-n", "9"][..], 9, 0),
        (&["--command", "before", "-n", "9", "--upstream"], 0, 9),
        (&["--command", "probe", "--upstream"], 0, 1),
        (&["--command", "all", "-n", "3", "--upstream"], 3, 0),
    ] {
        let options = [options, &["--json"]].concat();
        let (result, printed) = send_and_read(&url, &options).await;
        assert_eq!(result.is_err(), failed > 0, "{printed}");
        let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(report["failed"], failed, "{options:?}: {report}");
        let expected = match answers {
            0 => serde_json::json!([]),
            count => serde_json::json!([{"answer": "200 OK/10100 rude", "count": count}]),
        };
        assert_eq!(report["backend_answers"], expected, "{options:?}");
    }
}

#[test]
fn the_token_is_never_shown() {
    let options = ["send", "--sdk-app-id", "7", "--token", "hunter2"];
    let cli = TestCli::try_parse_from(options).unwrap();
    assert!(!format!("{cli:?}").contains("hunter2"), "{cli:?}");
}

#[test]
fn a_token_comes_from_a_file_and_of_a_list_the_first_is_taken() {
    let path = env::temp_dir().join(format!("recall-relay-send-{}", std::process::id()));
    fs::write(&path, "  first, second\n").unwrap();
    let file = path.to_str().unwrap();
    let read = |options: &[&str]| {
        let fixed = ["send", "--sdk-app-id", "7,8"];
        let args = TestCli::try_parse_from(fixed.iter().chain(options))
            .unwrap()
            .args;
        assert_eq!(args.sdk_app_id, 7);
        token(&args).map(|token| token.map(|token| token.expose().to_owned()))
    };
    assert_eq!(
        read(&["--token-file", file]).unwrap().as_deref(),
        Some("first")
    );
    fs::write(&path, "\u{feff}8=second\r\n\"first\"\r\n").unwrap();
    assert_eq!(
        read(&["--token-file", file]).unwrap().as_deref(),
        Some("first")
    );
    fs::write(&path, " \n").unwrap();
    assert_eq!(
        read(&["--token-file", file]).unwrap_err().to_string(),
        "the token is empty; set it, or remove it"
    );
    fs::remove_file(&path).unwrap();
    let error = format!("{:#}", read(&["--token-file", file]).unwrap_err());
    assert!(
        error.starts_with(&format!("token file {file} cannot be read: ")),
        "{error}"
    );
}

#[test]
fn bad_usage_is_refused_by_the_parser() {
    for options in [
        &["--rate", "0"] as &[_],
        &["--rate", "NaN"],
        &["--timeout", "0s"],
        &["--count", "0"],
        &["--connections", "0"],
        &["--url", "relay:8080"],
        &["--token", "a", "--token-file", "b"],
        &["--print", "--rate", "5"],
        &["--print", "--json"],
        &["--command", "State.StateChanged"],
    ] {
        let fixed = ["send", "--sdk-app-id", "7"];
        assert!(
            TestCli::try_parse_from(fixed.iter().chain(options)).is_err(),
            "{options:?}"
        );
    }
}

#[tokio::test]
async fn more_connections_than_conversations_are_refused() {
    let error = send("http://relay/", &["-c", "3", "--conversations", "2"])
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("error: --connections 3 needs"), "{text}");
    assert!(text.contains("Usage: recall-relay send"), "{text}");
}

#[tokio::test]
async fn printed_callbacks_are_not_sent() {
    let options = ["--print", "-n", "2", "--command", "c2c", "--first-seq", "5"];
    let (result, printed) = send_and_read("http://relay/?a=b", &options).await;
    result.unwrap();
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines.len(), 2);
    let start = concat!(
        "curl -sS -H 'Content-Type: application/json' --data-raw '",
        r#"{"CallbackCommand":"C2C.CallbackAfterMsgWithDraw","EventTime":"1670574414123","#,
        r#""From_Account":"sender-0","MsgKey":"5_387276917_1670574414","To_Account":"receiver-0"}"#,
        "' 'http://relay/?a=b&SdkAppid=1400000001&CallbackCommand=C2C.CallbackAfterMsgWithDraw",
        "&contenttype=json&ClientIP=127.0.0.1&OptPlatform=RESTAPI&Sign=",
    );
    assert!(lines[0].starts_with(start), "{printed}");
    assert!(!printed.contains("xxxxyyyy"), "{printed}");
}
