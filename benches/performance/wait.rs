//! Waiting for what nothing would wake us for.

use std::thread;
use std::time::{Duration, Instant};

/// Looks again and again, after each pause; whether it became true in time.
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
