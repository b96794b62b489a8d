//! Ranks the reasons for an outage by how specific they are.

use std::time::{Duration, Instant};

/// How specifically a reason says what to repair, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Specificity {
    /// Only that nothing works.
    Symptom,
    /// A peer cannot be reached: anything may be the cause.
    Unreachable,
    /// What to repair: a password, a right, a certificate, a name, a topic.
    Cause,
}

/// A reason is replaced by a less specific one if it has not recurred for this long. librdkafka reports an error that
/// recurs only every 30 seconds, and then with its next attempt to connect, at most 10 seconds later.
const VALID_FOR: Duration = Duration::from_secs(60);

/// The most specific of the reasons reported lately; of equally specific ones, the last.
#[derive(Debug, Default)]
pub(super) struct MostSpecificReason(Option<(Specificity, String, Instant)>);

impl MostSpecificReason {
    /// Takes a reason that was reported `now`, unless a more specific one is still valid. Returns whether the text has
    /// changed.
    pub(super) fn update(&mut self, specificity: Specificity, text: &str, now: Instant) -> bool {
        let known = self.0.as_ref();
        if known.is_some_and(|(known, _, at)| {
            *known > specificity && now.saturating_duration_since(*at) < VALID_FOR
        }) {
            return false;
        }
        let changed = known.is_none_or(|(_, known, _)| known != text);
        self.0 = Some((specificity, text.to_owned(), now));
        changed
    }

    /// The reason, if it was reported within the last minute.
    pub(super) fn recent(&self, now: Instant) -> Option<(Specificity, &str)> {
        let (specificity, text, at) = self.0.as_ref()?;
        (now.saturating_duration_since(*at) < VALID_FOR).then_some((*specificity, text))
    }

    /// The reason, however old.
    pub(super) fn text(&self) -> &str {
        self.0.as_ref().map_or("", |(_, text, _)| text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_less_specific_reason_replaces_only_an_outdated_one() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut reason = MostSpecificReason::default();
        assert!(reason.update(Specificity::Symptom, "all down", began));
        assert!(reason.update(Specificity::Cause, "wrong password", after(1)));
        assert!(!reason.update(Specificity::Unreachable, "refused", after(2)));
        assert!(!reason.update(Specificity::Cause, "wrong password", after(40)));
        assert!(!reason.update(Specificity::Unreachable, "refused", after(99)));
        assert_eq!(reason.text(), "wrong password");
        // The password was repaired, then the network failed.
        assert!(reason.update(Specificity::Unreachable, "refused", after(100)));
        let expected = Some((Specificity::Unreachable, "refused"));
        assert_eq!(reason.recent(after(159)), expected);
        assert_eq!(reason.recent(after(160)), None);
    }

    #[test]
    fn the_last_of_equally_specific_reasons_counts() {
        let now = Instant::now();
        let mut reason = MostSpecificReason::default();
        assert!(reason.update(Specificity::Cause, "no such topic", now));
        assert!(reason.update(Specificity::Cause, "no right", now));
        assert_eq!(reason.text(), "no right");
    }
}
