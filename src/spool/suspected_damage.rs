//! Suspected damage: an error that looks like damage may be temporary.

use std::time::{Duration, Instant};

/// Suspected damage. SQLite reports a disk that fails to read as a damaged file (`SQLITE_IOERR_CORRUPTFS`), and the
/// disk may recover: only an error that lasts is damage.
#[derive(Debug, Default)]
pub(super) struct SuspectedDamage(Option<Instant>);

/// If the file looks damaged for this long, it is damaged.
const CONFIRM_AFTER: Duration = if cfg!(any(test, fuzzing)) {
    Duration::from_millis(100)
} else {
    Duration::from_secs(5)
};

impl SuspectedDamage {
    /// Records that the file looks damaged; returns whether it is, because this has lasted.
    pub(super) fn confirm(&mut self) -> bool {
        self.0.get_or_insert_with(Instant::now).elapsed() >= CONFIRM_AFTER
    }

    /// Records that the same work has succeeded.
    pub(super) const fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use std::thread::park_timeout;

    use super::*;

    #[test]
    fn suspected_damage_is_confirmed_only_if_it_lasts() {
        let mut suspicion = SuspectedDamage::default();
        assert!(!suspicion.confirm(), "not at once");
        park_timeout(CONFIRM_AFTER);
        suspicion.clear();
        assert!(!suspicion.confirm(), "not if it worked in between");
        park_timeout(CONFIRM_AFTER);
        assert!(suspicion.confirm());
    }
}
