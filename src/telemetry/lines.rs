//! The queue of log lines and the thread that writes them to standard error.
//!
//! Standard error may be a pipe that nobody reads. So a separate thread writes the lines, and no caller, such as the
//! spool's writer, waits for it. Lines that cannot be queued or written are dropped and counted; when lines can be
//! written again, the log says how many.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

/// How many lines may be queued; further ones are dropped.
const CAPACITY: usize = 4096;

/// How many lines the whole process has dropped.
pub(super) static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How long a flush waits for space in the queue, and then for the queued lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How often dropped lines are logged at most.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// The pause between two attempts to queue a flush while the queue is full.
const TRY_EVERY: Duration = Duration::from_millis(10);

enum LogMessage {
    Line(Vec<u8>),
    /// Answered when every line that was queued before it is written.
    Flush(SyncSender<()>),
}

/// A handle to the queue of lines.
#[derive(Debug, Clone)]
pub(super) struct Lines(SyncSender<LogMessage>);

impl Lines {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (lines, waiting) = sync_channel(CAPACITY);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write(&waiting))?;
        Ok(Self(lines))
    }

    /// Waits until the queued lines are written, but not for long.
    pub(super) fn flush_all(&self) {
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        let (done, flushed) = sync_channel(1);
        let mut message = LogMessage::Flush(done);
        while let Err(TrySendError::Full(back)) = self.0.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            thread::park_timeout(TRY_EVERY);
            message = back;
        }
        let _ = flushed.recv_timeout(FLUSH_TIMEOUT);
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.try_send(LogMessage::Line(line.to_vec())).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(waiting: &Receiver<LogMessage>) {
    let mut reports = DropReports::new();
    let mut is_read = false;
    loop {
        let message = match waiting.try_recv() {
            // Only now: a line about it would not have fitted into the full queue. And only if lines can be written:
            // otherwise that line would be dropped, too, and reported, and so on.
            Err(TryRecvError::Empty) => {
                if is_read {
                    reports.log(Instant::now());
                }
                waiting.recv().ok()
            }
            received => received.ok(),
        };
        match message {
            Some(LogMessage::Line(line)) => {
                is_read = io::stderr().write_all(&line).is_ok();
                if !is_read {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                }
            }
            Some(LogMessage::Flush(done)) => drop(done.send(())),
            None => return,
        }
    }
}

/// Logs how many lines were dropped.
#[derive(Debug)]
struct DropReports {
    /// How many dropped lines have been logged.
    reported: u64,
    last: Option<Instant>,
}

impl DropReports {
    fn new() -> Self {
        Self {
            reported: DROPPED.load(Ordering::Relaxed),
            last: None,
        }
    }

    fn log(&mut self, now: Instant) {
        let lines = DROPPED.load(Ordering::Relaxed) - self.reported;
        let is_due = self
            .last
            .is_none_or(|last| now.duration_since(last) >= REPORT_EVERY);
        if lines > 0 && is_due {
            self.reported += lines;
            self.last = Some(now);
            warn!(
                code = "log_lines_dropped",
                lines,
                "log lines were dropped before this one, because standard error was not read fast enough; callbacks and \
                 events are not affected; check the log collector, and if log.filter is debug, set it back to info"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_dropped_from_a_full_queue_are_counted() {
        // The writer is blocked: it takes no line from the queue.
        let (lines, queue) = sync_channel(1);
        let mut lines = Lines(lines);
        let mut write = |line: &[u8]| {
            let before = DROPPED.load(Ordering::Relaxed);
            assert_eq!(lines.write(line).unwrap(), line.len());
            DROPPED.load(Ordering::Relaxed) - before
        };
        assert_eq!([write(b"a"), write(b"b"), write(b"c")], [0, 1, 1]);
        assert!(matches!(queue.recv().unwrap(), LogMessage::Line(line) if line == b"a"));
        assert_eq!(write(b"d"), 0);
    }
}
