//! Lines on their way to standard error.
//!
//! It may be a pipe that nobody reads: a thread of its own writes them, and who has something to tell, the
//! spool's writer among them, waits for nothing.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Lines that wait to be written; further ones are dropped.
const WAITING: usize = 4096;

/// How long, at the end, what waits may take to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it is tried to put something there while there is no room.
const TRY_EVERY: Duration = Duration::from_millis(10);

enum Message {
    Line(Vec<u8>),
    /// Everything before it was written.
    Flush(SyncSender<()>),
}

/// Where lines are put.
#[derive(Debug, Clone)]
pub(super) struct Lines(SyncSender<Message>);

impl Lines {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (lines, waiting) = sync_channel(WAITING);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write(&waiting))?;
        Ok(Self(lines))
    }

    /// Waits until what was put there is written, but not for long.
    pub(super) fn flush_all(&self) {
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        let (done, flushed) = sync_channel(1);
        let mut message = Message::Flush(done);
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
        let _ = self.0.try_send(Message::Line(line.to_vec()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(waiting: &Receiver<Message>) {
    for message in waiting {
        match message {
            // There is nobody to tell that it cannot be written.
            Message::Line(line) => drop(io::stderr().write_all(&line)),
            Message::Flush(done) => drop(done.send(())),
        }
    }
}
