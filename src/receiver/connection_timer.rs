//! How long a connection may go without a request.
//!
//! hyper has one time-out for the time that a head may take and for the time that a kept-alive connection may be
//! idle. The first should be short, the second longer than that of the proxy in front. So each connection
//! has a timer of ours.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{Instant, sleep_until};

use super::Limits;

/// The timer of one connection. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct ConnectionTimer {
    limits: Limits,
    activity: Arc<Mutex<Activity>>,
}

/// What the peer is doing. hyper handles one request at a time on a connection; bytes that arrive before its answer is
/// ready do not start the time of the next head.
#[derive(Debug)]
enum Activity {
    /// It has sent part of a head since this moment, or has just connected: a head is due within `read_timeout`.
    Head(Instant),
    /// It sends a body or waits for an answer. Whoever reads the body limits the time for it.
    Request,
    /// It has sent nothing since the last answer, and may stay silent for `idle_timeout`.
    Idle(Instant),
}

impl ConnectionTimer {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            activity: Arc::new(Mutex::new(Activity::Head(Instant::now()))),
        }
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes have arrived.
    pub(super) fn received(&self) {
        let mut activity = self.activity();
        if matches!(*activity, Activity::Idle(_)) {
            *activity = Activity::Head(Instant::now());
        }
    }

    /// A head is complete.
    pub(super) fn request_opened(&self) {
        *self.activity() = Activity::Request;
    }

    /// The answer is ready to be sent.
    pub(super) fn request_answered(&self) {
        *self.activity() = Activity::Idle(Instant::now());
    }

    /// Waits until the connection has to be closed.
    pub(super) async fn overdue(&self) {
        loop {
            let now = Instant::now();
            // A head may begin at any moment and is due `read_timeout` later: never sleep for longer.
            let mut wake_at = now + *self.limits.read_timeout;
            let deadline = match *self.activity() {
                Activity::Head(since) => Some(since + *self.limits.read_timeout),
                Activity::Request => None,
                Activity::Idle(since) => Some(since + *self.limits.idle_timeout),
            };
            if let Some(deadline) = deadline {
                if deadline <= now {
                    return;
                }
                wake_at = wake_at.min(deadline);
            }
            sleep_until(wake_at).await;
        }
    }
}
