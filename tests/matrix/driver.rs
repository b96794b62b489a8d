//! The vendor, as a process of its own: numbered callbacks in many conversations at a steady rate.
//!
//! Each conversation has its own connection and its own schedule, and at most one open request. A callback
//! that is not answered within the vendor's two seconds is recorded as unanswered and not retried, as the
//! vendor does by default. It stops at the end of standard input.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::ledger::{Outcome, Writer};
use super::options::Options;
use super::rig::{Connection, recall};

/// How long the vendor waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The driver, seen from the harness. Dropped, it is killed.
pub struct Driver(Child);

impl Driver {
    /// Starts it: `tag` is the prefix of its conversations' names.
    pub fn start(to: SocketAddr, tag: &str, options: &Options, ledger: &Path) -> Self {
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["drive", &to.to_string(), tag])
            .args([options.conversations, options.rate].map(|number| number.to_string()))
            .arg(ledger)
            .stdin(Stdio::piped())
            .spawn();
        Self(child.expect("the driver"))
    }

    /// Stops it, once every callback is in the ledger.
    pub fn stop(mut self) {
        drop(self.0.stdin.take());
        let status = self.0.wait().expect("the driver");
        assert!(status.success(), "the driver ended with {status}");
    }

    pub fn runs(&mut self) -> bool {
        self.0.try_wait().expect("the driver").is_none()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The driver itself.
pub fn run(arguments: &[String]) {
    let [to, tag, conversations, rate, ledger] = arguments else {
        panic!("drive ADDRESS TAG CONVERSATIONS RATE LEDGER, not {arguments:?}");
    };
    let to: SocketAddr = to.parse().expect("an address");
    let conversations: u32 = conversations.parse().expect("a number of conversations");
    let rate: u32 = rate.parse().expect("a rate");
    let ledger = Writer::open(Path::new(ledger));
    let stopped = AtomicBool::new(false);
    // Each conversation sends once per period, evenly spaced.
    let period = Duration::from_secs(1) * conversations / rate;
    thread::scope(|scope| {
        for conversation in 0..conversations {
            let (stopped, ledger) = (&stopped, &ledger);
            let first = Instant::now() + period * conversation / conversations;
            let schedule = Schedule {
                next: first,
                period,
            };
            scope.spawn(move || converse(to, tag, conversation, schedule, stopped, ledger));
        }
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        stopped.store(true, Ordering::Relaxed);
    });
}

struct Schedule {
    next: Instant,
    period: Duration,
}

impl Schedule {
    /// Waits until the next callback is due. Missed ones are skipped.
    fn wait(&mut self) {
        let now = Instant::now();
        if self.next < now {
            self.next = now;
        }
        while let Some(left) = self.next.checked_duration_since(Instant::now()) {
            if left.is_zero() {
                break;
            }
            thread::park_timeout(left);
        }
        self.next += self.period;
    }
}

fn converse(
    to: SocketAddr,
    tag: &str,
    conversation: u32,
    mut schedule: Schedule,
    stopped: &AtomicBool,
    ledger: &Writer,
) {
    let group = format!("{tag}-{conversation}");
    let mut connection = None;
    for number in 1.. {
        schedule.wait();
        if stopped.load(Ordering::Relaxed) {
            return;
        }
        let began = Instant::now();
        let open = connection
            .take()
            .map_or_else(|| Connection::open_with(to, TIMEOUT, TIMEOUT), Ok);
        let answer = open.and_then(|mut open: Connection| {
            let answer = open.post_recall(&recall(&group, u64::from(number)))?;
            Ok((open, answer))
        });
        let took = began.elapsed();
        let outcome = match answer {
            Ok((open, answer)) if took <= TIMEOUT => {
                let ok = answer.is_ok();
                let closes = answer.header("connection") == Some("close");
                connection = (!closes).then_some(open);
                if ok {
                    Outcome::Ok
                } else {
                    Outcome::NotOk(answer.status)
                }
            }
            Ok(_) | Err(_) => Outcome::Unanswered,
        };
        ledger.append(conversation, number, outcome, took);
    }
}
