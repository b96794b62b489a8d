//! Load that records the time of every acknowledgement.

use std::net::SocketAddr;
use std::thread;

use nix::time::{ClockId, clock_gettime};

use crate::rig::{Connection, Recall, padded_recall, recall};

/// A recall that was answered OK.
pub struct Acknowledged {
    pub recall: Recall,
    /// When the answer had been read: the monotonic clock in nanoseconds, which the trace uses too.
    pub at: u64,
}

/// The sizes of events.
#[derive(Debug, Clone, Copy)]
pub enum Size {
    Small,
    /// Some need several pages, which fills the WAL quickly.
    Mixed,
}

impl Size {
    fn body(self, group: &str, number: u64) -> String {
        match (self, number % 4) {
            (Self::Small, _) | (Self::Mixed, 0) => recall(group, number),
            (Self::Mixed, 1) => padded_recall(group, number, 3000),
            (Self::Mixed, 2) => padded_recall(group, number, 7000),
            (Self::Mixed, _) => padded_recall(group, number, 16_000),
        }
    }
}

/// Sends `count` recalls without a pause on each of `connections` connections, each in its own conversation.
pub fn send_all(
    to: SocketAddr,
    run: &str,
    connections: usize,
    count: u64,
    size: Size,
) -> Vec<Acknowledged> {
    let senders: Vec<_> = (0..connections)
        .map(|connection| {
            let group = format!("{run}-{connection}");
            thread::spawn(move || send(to, &group, count, size))
        })
        .collect();
    senders
        .into_iter()
        .flat_map(|sender| sender.join().unwrap())
        .collect()
}

/// Sends `count` recalls, or fewer if one gets no answer because the relay has exited. Returns those answered OK.
fn send(to: SocketAddr, group: &str, count: u64, size: Size) -> Vec<Acknowledged> {
    let mut acknowledged = Vec::new();
    let Ok(mut connection) = Connection::open(to) else {
        return acknowledged;
    };
    for number in 1..=count {
        let Ok(answer) = connection.post_recall(&size.body(group, number)) else {
            break;
        };
        if answer.is_ok() {
            let recall = Recall::new(group, number);
            let at = now();
            acknowledged.push(Acknowledged { recall, at });
        }
    }
    acknowledged
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(now.tv_sec()).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap()
}
