//! What was sent and how it was answered: one line for each callback, appended as the answer comes.
//!
//! A line is `conversation number outcome microseconds at`: `ok`, a status, or `none` where the vendor
//! got no answer; the time that took; and when it came, on the clock that all processes share.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// What became of a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// Another answer, with this status.
    Not(u16),
    /// No answer within the vendor's limit, or the connection was lost.
    None,
}

pub struct Writer(Mutex<File>);

impl Writer {
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new().append(true).create(true).open(path);
        Self(Mutex::new(file.expect("the ledger")))
    }

    pub fn note(&self, conversation: u32, number: u32, outcome: Outcome, took: Duration) {
        let outcome = match outcome {
            Outcome::Ok => "ok".to_owned(),
            Outcome::Not(status) => status.to_string(),
            Outcome::None => "none".to_owned(),
        };
        let (took, at) = (took.as_micros(), now());
        let line = format!("{conversation} {number} {outcome} {took} {at}\n");
        let mut file = self.0.lock().expect("the ledger");
        file.write_all(line.as_bytes()).expect("the ledger");
    }
}

/// What a ledger says.
#[derive(Debug, Default)]
pub struct Ledger {
    pub sent: u64,
    pub ok: u64,
    pub not_ok: u64,
    pub unanswered: u64,
    /// The longest that an OK took.
    pub slowest: Duration,
    /// Of each conversation, by number from 1: whether it was answered OK. None: not sent.
    pub conversations: Vec<Vec<Option<bool>>>,
    /// When each OK came.
    ok_at: Vec<u64>,
}

impl Ledger {
    pub fn read(path: &Path) -> Self {
        let mut ledger = Self::default();
        let file = BufReader::new(File::open(path).expect("the ledger"));
        for line in file.lines() {
            let line = line.expect("the ledger");
            ledger.take(&line).unwrap_or_else(|| panic!("{line:?}"));
        }
        ledger.ok_at.sort_unstable();
        ledger
    }

    /// Takes in a line; none where it is not one.
    pub fn take(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ');
        let conversation: usize = words.next()?.parse().ok()?;
        let number: usize = words.next()?.parse().ok()?;
        let outcome = words.next()?;
        let took = Duration::from_micros(words.next()?.parse().ok()?);
        let at = words.next()?.parse().ok()?;
        self.sent += 1;
        match outcome {
            "ok" => {
                self.ok += 1;
                self.slowest = self.slowest.max(took);
                self.ok_at.push(at);
            }
            "none" => self.unanswered += 1,
            _ => self.not_ok += 1,
        }
        if self.conversations.len() <= conversation {
            self.conversations.resize(conversation + 1, Vec::new());
        }
        let numbers = &mut self.conversations[conversation];
        if numbers.len() <= number {
            numbers.resize(number + 1, None);
        }
        numbers[number] = Some(outcome == "ok");
        Some(())
    }

    /// How long after `at` the next callback was answered OK.
    pub fn next_ok_after(&self, at: u64) -> Option<Duration> {
        let next = self.ok_at.partition_point(|ok| *ok < at);
        let next = self.ok_at.get(next)?;
        Some(Duration::from_micros(next - at))
    }
}

/// Microseconds on a clock that only goes forward, and that all processes share.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock");
    let now = Duration::from(now);
    u64::try_from(now.as_micros()).expect("a time")
}
