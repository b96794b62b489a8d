//! Honest clients: they send signed recalls at a steady rate, each due at a certain time, and wait 2 s for each answer
//! as the vendor does.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use recall_relay::vendor::CallbackKind;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::connect::{Tls, open};
use super::rig::{APP, Recall, recall};

/// The token that honest callbacks are signed with.
pub const TOKEN: &str = "token-of-the-honest";

/// The group of the honest recalls.
pub const GROUP: &str = "honest";

/// The vendor waits so long for an answer.
pub const VENDOR_WAITS: Duration = Duration::from_secs(2);

/// The time from one callback to the next.
const GAP: Duration = Duration::from_millis(10);

/// How many connections are kept open and take turns. Enough that one is free even if answers take a second.
const KEPT: usize = 50;

/// How often `/livez` is asked.
const LIVEZ_GAP: Duration = Duration::from_millis(500);

/// The body of an answer OK.
const OK: &[u8] = br#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

/// Where callbacks go to, and when they are due.
#[derive(Clone)]
pub struct Load {
    pub to: SocketAddr,
    pub tls: Option<Tls>,
    pub from: Instant,
    pub until: Instant,
}

/// What became of a callback.
pub struct Sample {
    pub recall: Recall,
    pub due: Instant,
    /// Whether it was sent on a connection that had been used before.
    pub kept: bool,
    /// The time from when it was due to the answer OK, or what happened instead.
    pub answered: Result<Duration, String>,
}

impl Load {
    /// Sends callbacks, and returns when the last one has been answered or given up.
    pub async fn run(self) -> Vec<Sample> {
        let load = Arc::new(self);
        let pool = Arc::default();
        let mut callbacks = JoinSet::new();
        let mut due = load.from;
        let mut number = 0;
        while due < load.until {
            sleep_until(due).await;
            number += 1;
            callbacks.spawn(callback(Arc::clone(&load), Arc::clone(&pool), due, number));
            due += GAP;
        }
        callbacks.join_all().await
    }
}

/// Sends one callback: an even one on a kept connection if one is free, an odd one on a new connection. That is closed
/// afterwards, unless there are too few kept ones.
async fn callback(
    load: Arc<Load>,
    pool: Arc<Mutex<VecDeque<Client>>>,
    due: Instant,
    number: u64,
) -> Sample {
    let reuse = number.is_multiple_of(2);
    let kept = reuse.then(|| pool.lock().unwrap().pop_front()).flatten();
    let sample = |kept, answered| Sample {
        recall: Recall::new(GROUP, number),
        due,
        kept,
        answered,
    };
    let was_kept = kept.is_some();
    let mut client = match kept {
        Some(client) => client,
        None => match Client::open_until(due + VENDOR_WAITS, load.to, load.tls.as_ref()).await {
            Ok(client) => client,
            Err(error) => return sample(was_kept, Err(error)),
        },
    };
    let target = format!("/?{}", signed_query());
    let body = recall(GROUP, number);
    let answer = timeout_at(due + VENDOR_WAITS, client.request("POST", &target, body)).await;
    let answered = match answer {
        Err(_) => Err("no answer".to_owned()),
        Ok(Err(error)) => Err(error),
        Ok(Ok((status, body))) if status == StatusCode::OK && body == OK => Ok(due.elapsed()),
        Ok(Ok((status, body))) => Err(format!("{status}: {}", String::from_utf8_lossy(&body))),
    };
    if answered.is_ok() && client.open {
        let mut pool = pool.lock().unwrap();
        if pool.len() < KEPT {
            pool.push_back(client);
        }
    }
    sample(was_kept, answered)
}

/// The query of a recall, signed now.
pub fn signed_query() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    CallbackKind::Group.query(APP, Some((TOKEN, now.unwrap().as_secs())))
}

/// Asks `/livez` on a new connection each time until `stop` is cancelled; returns the time of the slowest answer. One
/// that is missing counts with its time, but at least `limit`.
pub async fn watch_liveness(
    admin: SocketAddr,
    limit: Duration,
    stop: CancellationToken,
) -> Duration {
    let mut slowest = Duration::ZERO;
    let mut due = Instant::now();
    while !stop.is_cancelled() {
        sleep_until(due).await;
        let alive = timeout_at(due + 2 * limit, async {
            let mut client = Client::open_until(due + 2 * limit, admin, None).await?;
            client.request("GET", "/livez", String::new()).await
        });
        let is_alive = matches!(alive.await, Ok(Ok((StatusCode::OK, _))));
        let took = due.elapsed();
        slowest = slowest.max(if is_alive { took } else { took.max(2 * limit) });
        due = (due + LIVEZ_GAP).max(Instant::now());
    }
    slowest
}

/// An HTTP connection.
struct Client {
    host: String,
    sender: SendRequest<Full<Bytes>>,
    /// Reads and writes; polled only while there is a request.
    driver: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
    /// Whether another request can be sent.
    open: bool,
}

impl Client {
    async fn open_until(
        deadline: Instant,
        to: SocketAddr,
        tls: Option<&Tls>,
    ) -> Result<Self, String> {
        let opening: BoxFuture<'_, _> = Box::pin(open(to, tls));
        let stream = timeout_at(deadline, opening)
            .await
            .map_err(|_| "no connection".to_owned())?
            .map_err(|error| format!("no connection: {error}"))?;
        let (sender, driver) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        Ok(Self {
            host: to.to_string(),
            sender,
            driver: Box::pin(driver),
            open: true,
        })
    }

    async fn request(
        &mut self,
        method: &str,
        target: &str,
        body: String,
    ) -> Result<(StatusCode, Bytes), String> {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, &self.host)
            .body(Full::from(body))
            .unwrap();
        let sender = &mut self.sender;
        let exchange = async {
            sender.ready().await?;
            let response = sender.send_request(request).await?;
            let (parts, body) = response.into_parts();
            let closes = parts.headers.get(CONNECTION).is_some_and(|v| v == "close");
            let body = body.collect().await?.to_bytes();
            hyper::Result::Ok((parts.status, body, closes))
        };
        let mut exchange = std::pin::pin!(exchange);
        let answer = tokio::select! {
            biased;
            answer = &mut exchange => answer,
            // The connection has ended, perhaps after a whole answer.
            _ = &mut self.driver => {
                self.open = false;
                exchange.await
            }
        };
        let (status, body, closes) = answer.map_err(|error| error.to_string())?;
        self.open &= !closes;
        Ok((status, body))
    }
}
