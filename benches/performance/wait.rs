//! Polling for conditions that send no notification.

use std::thread;
use std::time::{Duration, Instant};

/// Polls a condition every `pause`; returns whether it became true within `limit`.
pub fn wait(limit: Duration, pause: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if began.elapsed() > limit {
            return false;
        }
        thread::park_timeout(pause);
    }
}
