//! The driver: a separate process that acts as the vendor and sends numbered callbacks in many conversations at a
//! steady rate.
//!
//! Each conversation has its own connection and schedule, and at most one request in flight. A callback that is not
//! answered within the vendor's timeout of two seconds is recorded as unanswered and, like the vendor's default, not
//! retried. The harness pauses and continues it through standard input. The driver stops at the end of standard input, so
//! it also stops if the harness dies.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::ledger::{Outcome, Writer, now};
use super::options::Options;
use super::rig::{Connection, recall};

/// The vendor's timeout for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What the harness writes to the driver's standard input.
const PAUSE: u8 = b'p';
const CONTINUE: u8 = b'c';

/// A handle to the driver process, which is killed when this is dropped.
pub struct Driver(Child);

impl Driver {
    /// Starts the driver. `tag` is the prefix of its conversations' names.
    pub fn start(to: SocketAddr, tag: &str, options: &Options, ledger: &Path) -> Self {
        let child = Command::new(std::env::current_exe().expect("cannot find this program"))
            .args(["drive", &to.to_string(), tag])
            .args([options.conversations, options.rate].map(|number| number.to_string()))
            .arg(ledger)
            .stdin(Stdio::piped())
            .spawn();
        Self(child.expect("cannot start the driver"))
    }

    /// Sends nothing more until [`Driver::resume`]. Callbacks that were sent are still answered and recorded.
    pub fn pause(&mut self) {
        self.tell(PAUSE);
    }

    pub fn resume(&mut self) {
        self.tell(CONTINUE);
    }

    fn tell(&mut self, what: u8) {
        let stdin = self.0.stdin.as_mut().expect("the driver is stopped");
        stdin.write_all(&[what]).expect("cannot reach the driver");
    }

    /// Stops the driver and waits until every callback is in the ledger.
    pub fn stop(mut self) {
        drop(self.0.stdin.take());
        let status = self.0.wait().expect("cannot wait for the driver");
        assert!(status.success(), "the driver exited with {status}");
    }

    pub fn is_running(&mut self) -> bool {
        self.0
            .try_wait()
            .expect("cannot check the driver")
            .is_none()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The main function of the driver process.
pub fn run(arguments: &[String]) {
    let [to, tag, conversations, rate, ledger] = arguments else {
        panic!("expected ADDRESS TAG CONVERSATIONS RATE LEDGER, not {arguments:?}");
    };
    let to: SocketAddr = to.parse().expect("ADDRESS is invalid");
    let conversations: u32 = conversations
        .parse()
        .expect("CONVERSATIONS is not a number");
    let rate: u32 = rate.parse().expect("RATE is not a number");
    let ledger = Writer::open(Path::new(ledger));
    let (paused, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
    // Each conversation sends once per period; the conversations are evenly spaced within it.
    let period = Duration::from_secs(1) * conversations / rate;
    thread::scope(|scope| {
        for conversation in 0..conversations {
            let (state, ledger) = ((&paused, &stopped), &ledger);
            let first = Instant::now() + period * conversation / conversations;
            let schedule = Schedule {
                next: first,
                period,
            };
            scope.spawn(move || send_callbacks(to, tag, conversation, schedule, state, ledger));
        }
        let mut told = [0];
        while std::io::stdin().read(&mut told).is_ok_and(|read| read > 0) {
            paused.store(told == [PAUSE], Ordering::Relaxed);
        }
        stopped.store(true, Ordering::Relaxed);
    });
}

struct Schedule {
    next: Instant,
    period: Duration,
}

impl Schedule {
    /// Waits until the next callback is due. Skips callbacks whose time has passed.
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

/// Sends the callbacks of one conversation and records their outcomes, except while paused, until stopped.
fn send_callbacks(
    to: SocketAddr,
    tag: &str,
    conversation: u32,
    mut schedule: Schedule,
    (paused, stopped): (&AtomicBool, &AtomicBool),
    ledger: &Writer,
) {
    let group = format!("{tag}-{conversation}");
    let mut connection = None;
    for number in 1.. {
        loop {
            schedule.wait();
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            if !paused.load(Ordering::Relaxed) {
                break;
            }
        }
        let began = now();
        let open = connection
            .take()
            .map_or_else(|| Connection::open_with(to, TIMEOUT, TIMEOUT), Ok);
        // On an error the connection is dropped: a late answer must not be taken for that of the next callback.
        let answer = open.and_then(|mut open: Connection| {
            let answer = open.post_recall(&recall(&group, u64::from(number)))?;
            Ok((open, answer))
        });
        let ended = now();
        let outcome = match answer {
            // The timeout limits each read. An answer in several parts may take longer in total, so check again.
            Ok((open, answer)) if Duration::from_micros(ended - began) <= TIMEOUT => {
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
        ledger.append(conversation, number, outcome, began..ended);
    }
}
