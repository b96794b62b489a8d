//! Sends any bytes to the control socket of a relay, and to a command as the relay's replies.
//!
//! Nothing panics or hangs, and every reply of the relay is understood by a command.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use recall_relay::control::{Target, parse_reply, serve};
use recall_relay::forwarder::SinkHandle;
use recall_relay::spool::{Config, Spool};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// What one side may have written without the other having read it, in bytes.
const PIPE: usize = 1 << 10;

/// The client has sent everything and closed its side: nothing is left to wait for.
const LIMIT: Duration = Duration::from_secs(4);

struct Relay {
    target: Target,
    runtime: Runtime,
    _folder: TempDir,
}

static RELAY: LazyLock<Relay> = LazyLock::new(|| {
    let folder = TempDir::new().expect("a folder");
    let config = Config {
        path: folder.path().join("spool.db"),
        ..Config::default()
    };
    let spool = Spool::open(&config, &["kafka"]).expect("a spool").spool;
    let cursor = spool.cursor("kafka").expect("a cursor");
    // Nobody publishes for this sink, so a replay waits until its client is gone.
    let sinks = vec![SinkHandle::new("kafka", cursor)];
    Relay {
        target: Target { spool, sinks },
        runtime: Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime"),
        _folder: folder,
    }
});

fuzz_target!(|bytes: &[u8]| {
    let _ = parse_reply(bytes);
    let replies = RELAY.runtime.block_on(async {
        let exchange = exchange(&RELAY.target, bytes);
        timeout(LIMIT, exchange).await.expect("the connection stays open")
    });
    for reply in replies.split_inclusive(|byte| *byte == b'\n') {
        parse_reply(reply).expect("a reply is understood");
    }
});

/// Everything that the relay sends to a client that sends these bytes and then closes its side.
async fn exchange(target: &Target, bytes: &[u8]) -> Vec<u8> {
    let (client, relay) = duplex(PIPE);
    let (mut replies, mut requests) = split(client);
    let send = async move {
        // The relay may close the connection first.
        let _ = requests.write_all(bytes).await;
        let _ = requests.shutdown().await;
    };
    let receive = async move {
        let mut received = Vec::new();
        let _ = replies.read_to_end(&mut received).await;
        received
    };
    let ((), received, _) = tokio::join!(send, receive, serve(relay, target));
    received
}
