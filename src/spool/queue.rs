//! The writer's queue: many tasks push to it, and one thread takes everything at once.
//!
//! A commit costs the same for one event as for a hundred. So the first caller gathers others before it wakes the
//! writer: it yields to every task that is ready to run and may push more. If no task is ready, it wakes the writer
//! at once.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::yield_now;

use super::append::{AppendError, Appended};
use super::dead_letter::DeadLetter;
use crate::event::{Event, Seq};

/// How many times at most the gathering caller yields before it wakes the writer.
const MAX_YIELDS: usize = 4;

/// When a batch has this many bytes, no more events are added to it, so that a commit of large events does not delay
/// the others for long.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// A command to the writer.
#[derive(Debug)]
pub(super) enum WriterCommand {
    Append(Append),
    StoreDeadLetters {
        dead_letters: Vec<DeadLetter>,
        reply: oneshot::Sender<Result<(), AppendError>>,
    },
    RemoveDeadLetters {
        dead_letters: Vec<(String, Seq)>,
        reply: oneshot::Sender<Result<u64, AppendError>>,
    },
    Forget {
        sink: String,
        reply: oneshot::Sender<Result<bool, AppendError>>,
    },
    Close,
}

impl WriterCommand {
    fn bytes(&self) -> usize {
        match self {
            Self::Append(append) => append.event.body.len(),
            _ => 0,
        }
    }
}

/// An event, and the waiter for its append.
#[derive(Debug)]
pub(super) struct Append {
    pub(super) event: Arc<Event>,
    pub(super) reply: oneshot::Sender<Result<Appended, AppendError>>,
    /// The event's memory permit, held until the commit is done.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// Why a command was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    Closed,
}

/// The queue of commands.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    filled: Condvar,
    /// How many commands may be queued before events are refused.
    capacity: usize,
}

#[derive(Debug, Default)]
struct QueueState {
    commands: VecDeque<WriterCommand>,
    /// A caller is gathering others and will wake the writer.
    gathering: bool,
    /// The writer may take what is queued.
    released: bool,
    closed: bool,
}

/// Wakes the writer when dropped, even if the gathering future is cancelled.
struct Gathering<'a>(&'a Queue);

impl Drop for Gathering<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.gathering = false;
        self.0.release(state);
    }
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            capacity: capacity.max(1),
        }
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pushes an event. The first caller gathers others, wakes the writer, then returns; later callers return
    /// at once.
    pub(super) async fn append(&self, append: Append) -> Result<(), Refused> {
        let gathering = {
            let mut state = self.state();
            if state.closed {
                return Err(Refused::Closed);
            }
            if state.commands.len() >= self.capacity {
                return Err(Refused::Full);
            }
            state.commands.push_back(WriterCommand::Append(append));
            if state.gathering || state.released {
                return Ok(());
            }
            state.gathering = true;
            Gathering(self)
        };
        let mut before = 1;
        for _ in 0..MAX_YIELDS {
            yield_now().await;
            let now = self.state().commands.len();
            if now == before {
                break;
            }
            before = now;
        }
        drop(gathering);
        Ok(())
    }

    /// Pushes a command, even if the queue is full, and wakes the writer.
    pub(super) fn put(&self, command: WriterCommand) -> Result<(), Refused> {
        let mut state = self.state();
        if state.closed {
            return Err(Refused::Closed);
        }
        state.commands.push_back(command);
        self.release(state);
        Ok(())
    }

    /// Wakes the writer.
    fn release(&self, mut state: MutexGuard<'_, QueueState>) {
        state.released = true;
        drop(state);
        self.filled.notify_one();
    }

    /// Waits until the queue is released or `timeout` has passed. Returns up to `limit` commands and about
    /// [`MAX_BATCH_BYTES`] bytes; `None` if the queue is closed and empty.
    pub(super) fn take(&self, limit: usize, timeout: Duration) -> Option<Vec<WriterCommand>> {
        let sleeping = |state: &mut QueueState| !state.released && !state.closed;
        let woken = self
            .filled
            .wait_timeout_while(self.state(), timeout, sleeping);
        let mut state = woken.unwrap_or_else(PoisonError::into_inner).0;
        if state.commands.is_empty() && state.closed {
            return None;
        }
        let mut bytes = 0;
        let fits = |command: &&WriterCommand| {
            let fits = bytes < MAX_BATCH_BYTES;
            bytes += command.bytes();
            fits
        };
        let taken = state.commands.iter().take(limit).take_while(fits).count();
        let commands = state.commands.drain(..taken).collect();
        state.released = !state.commands.is_empty();
        Some(commands)
    }

    /// Rejects further commands; those in the queue can still be taken.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.filled.notify_one();
    }

    /// Closes the queue and drops its commands, so that their waiters return.
    pub(super) fn abandon(&self) {
        let mut state = self.state();
        state.closed = true;
        let commands = std::mem::take(&mut state.commands);
        drop(state);
        drop(commands);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use futures_util::future::join_all;

    use super::*;
    use crate::event::tests::event;

    type Reply = oneshot::Receiver<Result<Appended, AppendError>>;

    fn append(number: u128) -> (Append, Reply) {
        let (reply, outcome) = oneshot::channel();
        let append = Append {
            event: Arc::new(event(number, "")),
            reply,
            permit: None,
        };
        (append, outcome)
    }

    fn numbers(commands: Option<Vec<WriterCommand>>) -> Vec<u128> {
        let number = |command| match command {
            WriterCommand::Append(append) => append.event.id.as_u128(),
            other => panic!("{other:?}"),
        };
        commands.unwrap().into_iter().map(number).collect()
    }

    #[tokio::test]
    async fn takes_queued_commands_at_once_and_in_order() {
        let queue = Queue::new(100);
        let putting = (0..20).map(|number| queue.append(append(number).0));
        assert_eq!(join_all(putting).await, [Ok(()); 20]);
        assert_eq!(
            numbers(queue.take(15, Duration::ZERO)),
            (0..15).collect::<Vec<_>>()
        );
        // The rest can be taken without waiting.
        assert_eq!(
            numbers(queue.take(15, Duration::MAX)),
            (15..20).collect::<Vec<_>>()
        );
        assert_eq!(numbers(queue.take(15, Duration::ZERO)), [0; 0]);
    }

    #[tokio::test]
    async fn limits_the_bytes_taken_at_once() {
        let queue = Queue::new(100);
        for number in 1..=5 {
            let (mut append, _) = append(number);
            append.event = Arc::new(event(number, vec![0; MAX_BATCH_BYTES / 2 + 1]));
            queue.append(append).await.unwrap();
        }
        for expected in [&[1, 2][..], &[3, 4], &[5]] {
            assert_eq!(numbers(queue.take(15, Duration::ZERO)), expected);
        }
    }

    /// As long as others arrive; those return at once.
    #[tokio::test]
    async fn the_first_caller_gathers_concurrent_appends() {
        let queue = Queue::new(100);
        let later = async |rounds, number| {
            for _ in 0..rounds {
                yield_now().await;
            }
            assert_eq!(queue.append(append(number).0).now_or_never(), Some(Ok(())));
        };
        let first = async {
            queue.append(append(1).0).await.unwrap();
            queue.state().commands.len()
        };
        let ((), (), gathered) = tokio::join!(biased; later(1, 2), later(2, 3), first);
        assert_eq!(gathered, 3);
        assert_eq!(numbers(queue.take(10, Duration::MAX)), [1, 2, 3]);
    }

    #[test]
    fn take_waits_for_the_timeout_if_the_queue_is_empty() {
        let queue = Queue::new(100);
        let timeout = Duration::from_millis(30);
        let began = std::time::Instant::now();
        assert_eq!(numbers(queue.take(10, timeout)), [0; 0]);
        assert!(began.elapsed() >= timeout);
    }

    #[tokio::test]
    async fn a_cancelled_gathering_wakes_the_writer() {
        let queue = Queue::new(100);
        assert!(queue.append(append(1).0).now_or_never().is_none());
        assert_eq!(numbers(queue.take(10, Duration::MAX)), [1]);
        // The next caller gathers again.
        assert!(queue.append(append(2).0).now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_appends_but_not_commands() {
        let queue = Queue::new(2);
        for (number, outcome) in [(1, Ok(())), (2, Ok(())), (3, Err(Refused::Full))] {
            assert_eq!(queue.append(append(number).0).await, outcome);
        }
        assert_eq!(queue.put(WriterCommand::Close), Ok(()));
        let taken = queue.take(10, Duration::MAX).unwrap();
        assert!(
            matches!(taken[..], [_, _, WriterCommand::Close]),
            "{taken:?}"
        );
        assert_eq!(queue.append(append(4).0).await, Ok(()));
    }

    #[tokio::test]
    async fn a_closed_queue_is_drained_and_an_abandoned_one_drops_waiters() {
        let queue = Queue::new(100);
        let (one, _outcome) = append(1);
        queue.append(one).await.unwrap();
        queue.close();
        assert_eq!(queue.append(append(2).0).await, Err(Refused::Closed));
        assert_eq!(queue.put(WriterCommand::Close), Err(Refused::Closed));
        assert_eq!(numbers(queue.take(10, Duration::MAX)), [1]);
        assert!(queue.take(10, Duration::MAX).is_none());

        let queue = Queue::new(100);
        let (one, outcome) = append(1);
        queue.append(one).await.unwrap();
        queue.abandon();
        assert!(outcome.await.is_err());
        assert!(queue.take(10, Duration::MAX).is_none());
    }
}
