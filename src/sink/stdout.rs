//! The sink used if no broker is configured: writes one event per line (NDJSON) to standard output.
//!
//! Confirmed means written and flushed. A separate thread writes, because standard output may be a pipe that nobody
//! reads.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::sync::mpsc;

use super::{Delivery, Progress, Session, SessionError, Sink, Window};
use crate::event::Seq;

/// The name of this sink.
pub const NAME: &str = "stdout";

/// Maximum number of events given to the thread and not written yet.
const WINDOW: usize = 1000;

/// Standard output.
#[derive(Debug, Default)]
pub struct Stdout {
    /// A write has failed, perhaps in the middle of a line, so the next write starts a new line.
    torn: Arc<AtomicBool>,
}

/// The thread that writes.
#[derive(Debug)]
pub struct StdoutSession {
    to_write: mpsc::Sender<Vec<Delivery>>,
    written: mpsc::Receiver<io::Result<Vec<Seq>>>,
    /// Events that the thread was too busy to take.
    overflow: Vec<Delivery>,
}

impl Sink for Stdout {
    type Session = StdoutSession;

    fn name(&self) -> &'static str {
        NAME
    }

    fn window(&self) -> usize {
        WINDOW
    }

    async fn connect(&mut self) -> Result<StdoutSession, SessionError> {
        let (to_write, mut batches) = mpsc::channel::<Vec<Delivery>>(1);
        let (report, written) = mpsc::channel(1);
        let torn = Arc::clone(&self.torn);
        thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || {
                while let Some(batch) = batches.blocking_recv() {
                    let outcome = write(&batch, torn.load(Ordering::Relaxed));
                    let failed = outcome.is_err();
                    torn.store(failed, Ordering::Relaxed);
                    if report.blocking_send(outcome).is_err() || failed {
                        return;
                    }
                }
            })
            .map_err(|error| {
                SessionError::unavailable(
                    "could not start the thread that writes standard output",
                    error,
                )
            })?;
        Ok(StdoutSession {
            to_write,
            written,
            overflow: Vec::new(),
        })
    }
}

fn write(batch: &[Delivery], torn: bool) -> io::Result<Vec<Seq>> {
    let mut out = io::stdout().lock();
    let mut lines = Vec::with_capacity(batch.iter().map(|d| d.event.body.len() + 1).sum());
    if torn {
        lines.push(b'\n');
    }
    for delivery in batch {
        lines.extend_from_slice(&delivery.event.body);
        lines.push(b'\n');
    }
    out.write_all(&lines)?;
    out.flush()?;
    Ok(batch.iter().map(|delivery| delivery.seq).collect())
}

impl Session for StdoutSession {
    fn publish(&mut self, window: &Window, seqs: &[Seq]) {
        let deliveries = seqs.iter().filter_map(|seq| window.delivery(*seq));
        self.overflow.extend(deliveries.cloned());
        self.send_overflow();
    }

    async fn progress(&mut self, _: &Window) -> Result<Progress, SessionError> {
        self.send_overflow();
        let outcome = self.written.recv().await;
        self.send_overflow();
        match outcome {
            Some(Ok(seqs)) => Ok(Progress::Confirmed(seqs)),
            Some(Err(error)) => Err(SessionError::unavailable(
                "could not write to standard output",
                error,
            )),
            None => Err(SessionError::Unavailable(
                "thread that writes standard output has ended".to_owned(),
                None,
            )),
        }
    }

    async fn close(self) {}
}

impl StdoutSession {
    /// Sends the queued events to the thread, if it is idle.
    fn send_overflow(&mut self) {
        if self.overflow.is_empty() {
            return;
        }
        if let Ok(slot) = self.to_write.try_reserve() {
            slot.send(std::mem::take(&mut self.overflow));
        }
    }
}
