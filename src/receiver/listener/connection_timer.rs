//! Limits how long a connection may stay open without a request.
//!
//! hyper has one timeout both for receiving a head and for an idle keep-alive connection. The first should be short,
//! and the second longer than the idle timeout of the proxy in front. So each connection has its own timer here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{Instant, sleep_until};

use super::limits::Limits;

/// The timer of one connection. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct ConnectionTimer {
    limits: Limits,
    activity: Arc<Mutex<Activity>>,
}

/// What the client is doing. hyper handles one request at a time on a connection; bytes that arrive before the answer
/// is ready do not start the timeout of the next head.
#[derive(Debug)]
enum Activity {
    /// The client connected, or began to send a head, or had an answer that earned no idle time, at this time. The next
    /// head must be complete within `read_timeout`.
    Head(Instant),
    /// The client sends a body or waits for an answer. The reader of the body applies its own timeout.
    Request,
    /// The client has sent nothing since the last answer, at this time. It may stay silent for `idle_timeout`.
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

    /// Records that bytes have arrived.
    pub(super) fn received(&self) {
        let mut activity = self.activity();
        if matches!(*activity, Activity::Idle(_)) {
            *activity = Activity::Head(Instant::now());
        }
    }

    /// Records that a head is complete.
    pub(super) fn request_opened(&self) {
        *self.activity() = Activity::Request;
    }

    /// Records that the answer is ready to be sent, and whether the connection may be idle for `idle_timeout`.
    /// Otherwise the next head must be complete within `read_timeout`.
    pub(super) fn request_answered(&self, may_be_idle: bool) {
        let now = Instant::now();
        *self.activity() = if may_be_idle {
            Activity::Idle(now)
        } else {
            Activity::Head(now)
        };
    }

    /// Waits until the connection must be closed.
    pub(super) async fn overdue(&self) {
        loop {
            let now = Instant::now();
            // A head or an idle time may begin at any moment, so never sleep longer than either may last.
            let mut wake_at = now + (*self.limits.read_timeout).min(*self.limits.idle_timeout);
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
