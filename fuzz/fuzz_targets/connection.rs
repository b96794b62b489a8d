//! Sends any bytes on a connection. The first byte of the input chooses how the relay is set up and in how large pieces
//! the rest arrives.
//!
//! Nothing panics. The relay sends nothing but answers that docs/reference/answers.md has, and then closes the
//! connection; and it stores no event of a request that is not signed.
#![no_main]

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use prometheus_client::registry::Registry;
use recall_relay::event::{Event, Seq};
use recall_relay::receiver::{
    Auth, AuthConfig, CallbackService, Config, Durability, ConnectionSetup, NotKept, Stored, serve_alone,
};
use recall_relay::upstream::Upstream;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, join, split};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

const APP: u64 = 1_400_000_001;

/// What the relay and the client may have written without the other having read it, in bytes.
const PIPE: usize = 1 << 10;

/// The client has sent everything and closed its side: nothing is left to wait for.
const LIMIT: Duration = Duration::from_secs(5);

/// Keeps no event, but says so.
struct Kind {
    is_signed: bool,
}

impl Durability for Kind {
    async fn keep(&self, _: Event, _: OwnedSemaphorePermit) -> Result<Stored, NotKept> {
        assert!(!self.is_signed, "an event of a request that is not signed");
        Ok(Stored {
            seq: Seq(1),
            is_new: true,
            partitions: Vec::new(),
        })
    }
}

struct Setup {
    config: Config,
    service: Arc<CallbackService<Kind>>,
}

impl Setup {
    fn new(is_signed: bool, proxy_protocol: bool) -> Self {
        let mut auth = AuthConfig::default();
        if is_signed {
            auth.tokens = "token".parse().expect("a token");
        }
        if proxy_protocol {
            auth.trusted_proxies = "127.0.0.1".parse().expect("an address");
        }
        let config = Config {
            proxy_protocol,
            ..Config::default()
        };
        let mut registry = Registry::default();
        let upstream = Arc::new(Upstream::new(&mut registry));
        let service = CallbackService::new(
            config.clone(),
            Auth::new(&[APP], auth),
            Kind { is_signed },
            upstream,
            &mut registry,
        );
        Self {
            config,
            service: Arc::new(service),
        }
    }
}

static SETUPS: LazyLock<[Setup; 4]> =
    LazyLock::new(|| [0, 1, 2, 3].map(|bits| Setup::new(bits & 1 != 0, bits & 2 != 0)));

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime")
});

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else {
        return;
    };
    let setup = &SETUPS[usize::from(choice & 3)];
    let piece = usize::from(choice >> 2).max(1) * 8;
    let answers = RUNTIME.block_on(async {
        let exchange = exchange(setup, bytes, piece);
        timeout(LIMIT, exchange).await.expect("the connection stays open")
    });
    check(&answers);
});

/// Everything that the relay sends to a client that sends these bytes and then closes its side.
async fn exchange(setup: &Setup, bytes: &[u8], piece: usize) -> Vec<u8> {
    let (client, relay) = duplex(PIPE);
    let (mut answers, mut requests) = split(client);
    let send = async move {
        for bytes in bytes.chunks(piece) {
            // The relay may close the connection first.
            if requests.write_all(bytes).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        let _ = requests.shutdown().await;
    };
    let receive = async move {
        let mut received = Vec::new();
        let _ = answers.read_to_end(&mut received).await;
        received
    };
    let peer = SocketAddr::from(([127, 0, 0, 1], 40_000));
    let (relay, answers_of) = split(relay);
    let relay = join(relay, answers_of);
    let connection = ConnectionSetup::of_callbacks(&setup.config);
    let serve = serve_alone(
        relay,
        peer,
        setup.config.limits(),
        connection,
        Arc::clone(&setup.service),
    );
    let ((), received, ()) = tokio::join!(send, receive, serve);
    received
}

/// Checks that these are documented answers, one after the other.
fn check(mut answers: &[u8]) {
    while !answers.is_empty() {
        let end = find(answers, b"\r\n\r\n").expect("a head has an end") + 4;
        let (head, rest) = answers.split_at(end);
        let head = str::from_utf8(head).expect("a head is ASCII");
        let (line, headers) = head.split_once("\r\n").expect("a head has lines");
        let (version, status) = line.split_once(' ').expect("a status line");
        assert!(matches!(version, "HTTP/1.1" | "HTTP/1.0"), "{line}");
        let status: u16 = status[..3].parse().expect("a status");
        let length = headers
            .to_ascii_lowercase()
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        answers = match status {
            100 => rest,
            // hyper's own, if it could not read the head.
            400 | 414 | 431 if length.unwrap_or(0) == 0 => rest,
            200 | 400 | 403 | 404 | 405 | 408 | 411 | 413 | 503 => {
                let length = length.expect("an answer has a length");
                // The answer to HEAD has no body.
                if rest.starts_with(b"{") {
                    let (body, rest) = rest.split_at(length);
                    check_body(status, body);
                    rest
                } else {
                    rest
                }
            }
            _ => panic!("status {status} is not documented"),
        };
    }
}

/// Checks that a body has the vendor's format.
fn check_body(status: u16, body: &[u8]) {
    let body: Value = serde_json::from_slice(body).expect("the body is JSON");
    let (action, code) = if status == 200 { ("OK", 0) } else { ("FAIL", 1) };
    assert_eq!(body["ActionStatus"], action);
    assert_eq!(body["ErrorCode"], code);
    assert!(body["ErrorInfo"].is_string());
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
