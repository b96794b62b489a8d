//! The vendor, as a process of its own: numbered callbacks over many conversations at a steady rate.
//!
//! Each conversation has its own connection and its own pace, and one callback under way at most. What
//! is not answered within the vendor's two seconds is written down as such, and the next number follows:
//! the vendor does not come back either. The end of standard input ends it.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::ledger::{Outcome, Writer};
use super::options::Options;
use super::rig::{Connection, recall, recall_query};

/// How long the vendor waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The driver, seen from the harness. Dropped, it is killed.
pub struct Driver(Child);

impl Driver {
    /// Starts it: `tag` is what its conversations are called, with a number behind.
    pub fn start(to: SocketAddr, tag: &str, options: &Options, ledger: &Path) -> Self {
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["drive", &to.to_string(), tag])
            .args([options.conversations, options.rate].map(|number| number.to_string()))
            .arg(ledger)
            .stdin(Stdio::piped())
            .spawn();
        Self(child.expect("the driver"))
    }

    /// Stops it; every callback has its line then.
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
    let over = AtomicBool::new(false);
    // Each conversation's turn comes once in a period, one after the other.
    let period = Duration::from_secs(1) * conversations / rate;
    thread::scope(|scope| {
        for conversation in 0..conversations {
            let (over, ledger) = (&over, &ledger);
            let first = Instant::now() + period * conversation / conversations;
            let pace = Pace {
                next: first,
                period,
            };
            scope.spawn(move || converse(to, tag, conversation, pace, over, ledger));
        }
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        over.store(true, Ordering::Relaxed);
    });
}

struct Pace {
    next: Instant,
    period: Duration,
}

impl Pace {
    /// Waits for the next turn. Turns that were missed are left out.
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
    mut pace: Pace,
    over: &AtomicBool,
    ledger: &Writer,
) {
    let group = format!("{tag}-{conversation}");
    let target = format!("/?{}", recall_query());
    let mut connection = None;
    for number in 1.. {
        pace.wait();
        if over.load(Ordering::Relaxed) {
            return;
        }
        let body = recall(&group, u64::from(number));
        let began = Instant::now();
        let open = connection
            .take()
            .map_or_else(|| Connection::open_with(to, TIMEOUT, TIMEOUT), Ok);
        let answer = open.and_then(|mut open: Connection| {
            let answer = open.request("POST", &target, body.as_bytes())?;
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
                    Outcome::Not(answer.status)
                }
            }
            Ok(_) | Err(_) => Outcome::None,
        };
        ledger.note(conversation, number, outcome, took);
    }
}
