//! The ledger of callbacks and their answers: one line per callback, appended when its answer arrives.
//!
//! A line is `conversation number outcome microseconds at`. The outcome is `ok`, a status, or `none` if the vendor got
//! no answer; `microseconds` is how long the answer took, and `at` when it arrived, on a clock that all processes share.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The outcome of a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// Another answer, with this status.
    NotOk(u16),
    /// No answer within the vendor's timeout, or the connection was lost.
    Unanswered,
}

/// A callback; its times are those of [`now`].
#[derive(Debug, Clone, Copy)]
pub struct Callback {
    pub is_ok: bool,
    pub sent_at: u64,
    /// When it was answered, or the vendor gave up.
    pub ended_at: u64,
}

pub struct Writer(Mutex<File>);

impl Writer {
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new().append(true).create(true).open(path);
        Self(Mutex::new(file.expect("cannot open the ledger")))
    }

    pub fn append(&self, conversation: u32, number: u32, outcome: Outcome, times: Range<u64>) {
        let outcome = match outcome {
            Outcome::Ok => "ok".to_owned(),
            Outcome::NotOk(status) => status.to_string(),
            Outcome::Unanswered => "none".to_owned(),
        };
        let (took, at) = (times.end - times.start, times.end);
        let line = format!("{conversation} {number} {outcome} {took} {at}\n");
        let mut file = self.0.lock().expect("a writer panicked");
        file.write_all(line.as_bytes()).expect("cannot append");
    }
}

/// The contents of a ledger.
#[derive(Debug, Default)]
pub struct Ledger {
    pub sent: u64,
    pub ok: u64,
    pub not_ok: u64,
    pub unanswered: u64,
    /// The longest time until an OK.
    pub slowest: Duration,
    /// For each conversation and number (from 1), the callback; `None` if it was not sent.
    pub conversations: Vec<Vec<Option<Callback>>>,
    /// The time of each OK; sorted by [`Ledger::read`].
    ok_at: Vec<u64>,
}

impl Ledger {
    pub fn read(path: &Path) -> Self {
        let mut ledger = Self::default();
        let file = BufReader::new(File::open(path).expect("cannot open the ledger"));
        for line in file.lines() {
            let line = line.expect("cannot read the ledger");
            ledger.add_line(&line).unwrap_or_else(|| panic!("{line:?}"));
        }
        ledger.ok_at.sort_unstable();
        ledger
    }

    /// Adds a line; returns `None` if it is malformed.
    pub fn add_line(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ');
        let conversation: usize = words.next()?.parse().ok()?;
        let number: usize = words.next()?.parse().ok()?;
        let outcome = words.next()?;
        let took = Duration::from_micros(words.next()?.parse().ok()?);
        let at: u64 = words.next()?.parse().ok()?;
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
        numbers[number] = Some(Callback {
            is_ok: outcome == "ok",
            sent_at: at.saturating_sub(u64::try_from(took.as_micros()).ok()?),
            ended_at: at,
        });
        Some(())
    }

    /// The callback of a conversation with a number.
    pub fn callback(&self, (conversation, number): (usize, usize)) -> Option<&Callback> {
        self.conversations.get(conversation)?.get(number)?.as_ref()
    }

    /// Every callback, with its conversation and number.
    pub fn callbacks(&self) -> impl Iterator<Item = ((usize, usize), &Callback)> {
        let conversations = self.conversations.iter().enumerate();
        conversations.flat_map(|(conversation, numbers)| {
            let callbacks = numbers.iter().enumerate();
            callbacks.filter_map(move |(number, it)| Some(((conversation, number), it.as_ref()?)))
        })
    }

    /// The time from `at` until the next OK.
    pub fn next_ok_after(&self, at: u64) -> Option<Duration> {
        let next = self.ok_at.partition_point(|ok| *ok < at);
        let next = self.ok_at.get(next)?;
        Some(Duration::from_micros(next - at))
    }
}

/// Microseconds on the monotonic clock, which all processes share.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("cannot read the clock");
    let now = Duration::from(now);
    u64::try_from(now.as_micros()).expect("the time exceeds u64")
}
