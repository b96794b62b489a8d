use super::*;
use crate::callback::{ParseError, SignatureError};
use crate::receiver::auth::AuthError;
use crate::receiver::durability::{AnswerAfter, Kept, NotKept};

const REFUSED: Outcome = Outcome::Refused(AuthError::Signature(SignatureError::Mismatch));

fn unavailable() -> Outcome {
    Outcome::NotKept(NotKept::Unavailable(
        "disk is full".to_owned(),
        "make space",
    ))
}

/// The number of recalls and the level of a line.
fn shown(line: Option<Line>) -> Option<(u64, bool)> {
    line.map(|line| (line.recalls, line.is_error))
}

#[test]
fn the_first_is_logged_at_once_and_then_one_line_a_minute() {
    let mut state = State::default();
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(shown(state.add(&REFUSED, start)), Some((1, true)));
    for second in 0..59 {
        assert_eq!(state.add(&REFUSED, after(second)), None);
    }
    assert_eq!(state.lines(after(59), false), []);
    let lines = state.lines(after(60), false);
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0].recalls, 59);
    assert_eq!(lines[0].reason, "Sign matches no token of auth.tokens");
    assert!(lines[0].advice.contains("auth.tokens"));
    assert_eq!(state.lines(after(600), false), []);
    assert_eq!(shown(state.add(&REFUSED, after(600))), Some((1, true)));
    assert_eq!(state.add(&REFUSED, after(601)), None);
    assert_eq!(state.lines(after(602), true).len(), 1, "at the end");
}

#[test]
fn causes_do_not_hide_each_other() {
    let mut state = State::default();
    let now = Instant::now();
    let old = Outcome::Refused(AuthError::Signature(SignatureError::Stale));
    for outcome in [REFUSED, old, unavailable(), Outcome::NotFound] {
        assert_eq!(
            shown(state.add(&outcome, now)),
            Some((1, true)),
            "{outcome:?}"
        );
        assert_eq!(state.add(&outcome, now), None, "{outcome:?}");
    }
    let expected = [("not_found", 2), ("refused", 4), ("unavailable", 2)];
    assert_eq!(state.last_minute(now), expected.into());
}

#[test]
fn a_line_is_an_error_if_nothing_is_accepted_or_the_relay_itself_fails() {
    let start = Instant::now();
    let mut state = State {
        last_accepted: Some(start),
        ..State::default()
    };
    let after = |minutes| start + Duration::from_mins(minutes);
    assert_eq!(shown(state.add(&REFUSED, after(1))), Some((1, false)));
    assert_eq!(shown(state.add(&unavailable(), after(1))), Some((1, true)));
    assert_eq!(shown(state.add(&REFUSED, after(9))), Some((1, false)));
    assert_eq!(shown(state.add(&REFUSED, after(10))), Some((1, true)));
}

#[test]
fn the_last_minute_forgets() {
    let mut state = State::default();
    let start = Instant::now();
    for second in 0..90 {
        state.add(&REFUSED, start + Duration::from_secs(second));
    }
    let now = start + Duration::from_secs(90);
    assert_eq!(state.last_minute(now), [("refused", 59)].into());
    let later = start + Duration::from_secs(150);
    assert_eq!(state.last_minute(later), BTreeMap::new());
}

const KEPT: Kept = Kept {
    is_new: true,
    after: AnswerAfter::Disk,
};

#[test]
fn what_is_accepted_or_stored_as_dead_letter_is_no_loss() {
    let mut state = State::default();
    for outcome in [
        Outcome::Kept(KEPT),
        Outcome::Kept(Kept {
            is_new: false,
            ..KEPT
        }),
        Outcome::Rejected(ParseError::NotAnObject),
        Outcome::Ignored,
        Outcome::Probe,
    ] {
        assert_eq!(state.add(&outcome, Instant::now()), None, "{outcome:?}");
        assert!(!outcome.is_loss());
    }
    assert!(state.causes.is_empty());
}
