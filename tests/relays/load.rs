//! A load of recalls through `HAProxy`, as the vendor sends them: each once, and it waits 2 s for the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use recall_relay::vendor::CallbackKind;

use crate::APPS;
use crate::haproxy::{Client, HaProxy, VENDOR_WAITS};
use crate::rig::{Recall, padded_recall, until};

/// The number of connections. Each has at most one callback under way, and a conversation and an application of its
/// own.
pub const CONNECTIONS: usize = APPS.len();

/// Long enough that a small spool is soon full, and short enough for `HAProxy` to send it again.
const EVENT_BYTES: usize = 4000;

/// Between an answer and the next callback of a connection.
const PAUSE: Duration = Duration::from_millis(10);

pub struct Load {
    stopped: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    senders: Vec<JoinHandle<Sent>>,
}

/// What was sent.
#[derive(Default)]
pub struct Sent {
    /// Answered OK within 2 s.
    pub acknowledged: Vec<Recall>,
    /// Not answered, answered late, or not OK; with what happened.
    pub failed: Vec<(Recall, String)>,
}

impl Load {
    /// Starts, and returns when callbacks are answered on all connections.
    pub fn start(haproxy: &HaProxy) -> Self {
        let (stopped, answered) = (Arc::default(), Arc::default());
        let senders = APPS.iter().map(|app| {
            let (stopped, answered) = (Arc::clone(&stopped), Arc::clone(&answered));
            let client = haproxy.client();
            thread::spawn(move || send_until(&stopped, &answered, client, *app))
        });
        let senders = senders.collect();
        let load = Self {
            stopped,
            answered,
            senders,
        };
        load.until_more();
        load
    }

    /// Waits until more callbacks are answered OK.
    pub fn until_more(&self) {
        let enough = self.answered.load(Ordering::Relaxed) + 20 * CONNECTIONS;
        until("load", || {
            (self.answered.load(Ordering::Relaxed) >= enough).then_some(())
        });
    }

    pub fn stop(self) -> Sent {
        self.stopped.store(true, Ordering::Relaxed);
        let mut all = Sent::default();
        for sender in self.senders {
            all.extend(sender.join().unwrap());
        }
        all
    }
}

impl Sent {
    /// Sends a recall; returns whether it was answered OK in time.
    pub fn post(&mut self, client: &mut Client, query: &str, body: &str, recall: Recall) -> bool {
        let began = Instant::now();
        let answer = client.post(query, body);
        let took = began.elapsed();
        let what = match answer {
            Ok(answer) if answer.is_ok() && took <= VENDOR_WAITS => {
                self.acknowledged.push(recall);
                return true;
            }
            Ok(answer) => format!("{} after {took:?}: {}", answer.status, answer.text()),
            Err(error) => format!("{error} after {took:?}"),
        };
        self.failed.push((recall, what));
        false
    }

    pub fn extend(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.failed.extend(other.failed);
    }
}

fn send_until(stopped: &AtomicBool, answered: &AtomicUsize, mut client: Client, app: u64) -> Sent {
    let query = CallbackKind::Group.query(app, None);
    let group = format!("group-{app}");
    let mut sent = Sent::default();
    for number in 1.. {
        if stopped.load(Ordering::Relaxed) {
            break;
        }
        let body = padded_recall(&group, number, EVENT_BYTES);
        if sent.post(&mut client, &query, &body, Recall::new(&group, number)) {
            answered.fetch_add(1, Ordering::Relaxed);
        }
        thread::park_timeout(PAUSE);
    }
    sent
}
