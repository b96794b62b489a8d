//! Chooses among the reasons for an outage.

use std::time::{Duration, Instant};

/// How much a reason says about what to repair, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Telling {
    /// Only that nothing works.
    Symptom,
    /// A peer cannot be reached: anything may be the cause.
    Unreachable,
    /// What to repair: a password, a right, a certificate, a name, a topic.
    Cause,
}

/// A reason is replaced by a less telling one if it has not recurred for this long. librdkafka reports an error that
/// recurs only every 30 seconds, and then with its next attempt to connect, at most 10 seconds later.
const VALID_FOR: Duration = Duration::from_secs(60);

/// The most telling of the reasons reported lately; of equally telling ones, the last.
#[derive(Debug, Default)]
pub struct MostTelling(Option<(Telling, String, Instant)>);

impl MostTelling {
    /// Takes a reason that was reported `now`, unless a more telling one is still valid. Returns whether the text has
    /// changed.
    pub fn update(&mut self, telling: Telling, text: &str, now: Instant) -> bool {
        let known = self.0.as_ref();
        if known.is_some_and(|(known, _, at)| {
            *known > telling && now.saturating_duration_since(*at) < VALID_FOR
        }) {
            return false;
        }
        let changed = known.is_none_or(|(_, known, _)| known != text);
        self.0 = Some((telling, text.to_owned(), now));
        changed
    }

    /// The reason, if there was one within the last minute.
    #[must_use]
    pub fn recent(&self, now: Instant) -> Option<(Telling, &str)> {
        let (telling, text, at) = self.0.as_ref()?;
        (now.saturating_duration_since(*at) < VALID_FOR).then_some((*telling, text))
    }

    /// The reason, however old.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.as_ref().map_or("", |(_, text, _)| text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_less_telling_reason_replaces_only_an_outdated_one() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut reason = MostTelling::default();
        assert!(reason.update(Telling::Symptom, "all down", began));
        assert!(reason.update(Telling::Cause, "wrong password", after(1)));
        assert!(!reason.update(Telling::Unreachable, "refused", after(2)));
        assert!(!reason.update(Telling::Cause, "wrong password", after(40)));
        assert!(!reason.update(Telling::Unreachable, "refused", after(99)));
        assert_eq!(reason.text(), "wrong password");
        // The password was repaired, then the network failed.
        assert!(reason.update(Telling::Unreachable, "refused", after(100)));
        let expected = Some((Telling::Unreachable, "refused"));
        assert_eq!(reason.recent(after(159)), expected);
        assert_eq!(reason.recent(after(160)), None);
    }

    #[test]
    fn the_last_of_equally_telling_reasons_counts() {
        let now = Instant::now();
        let mut reason = MostTelling::default();
        assert!(reason.update(Telling::Cause, "no such topic", now));
        assert!(reason.update(Telling::Cause, "no right", now));
        assert_eq!(reason.text(), "no right");
    }
}
