//! A point in time, as an option of a command.

use std::str::FromStr;

use jiff::Timestamp;

use crate::event::UnixMillis;
use crate::setting::Period;

/// A point in time, written in RFC 3339 or as a duration back from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct When(pub(super) UnixMillis);

impl FromStr for When {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let millis = if let Ok(time) = text.parse::<Timestamp>() {
            time.as_millisecond()
        } else {
            let Period(back) = text.parse().map_err(|_| {
                "neither a time such as `2026-11-28T03:00:00Z` nor a duration back such as `2h`"
            })?;
            let back = i64::try_from(back.as_millis()).unwrap_or(i64::MAX);
            UnixMillis::now().as_millis().saturating_sub(back)
        };
        // No event is older than the epoch.
        let millis = u64::try_from(millis).unwrap_or_default();
        UnixMillis::new(millis)
            .map(Self)
            .ok_or("after the year 9999")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_rfc_3339_or_a_duration_back() {
        let millis = |text: &str| text.parse::<When>().map(|when| when.0.as_millis());
        assert_eq!(millis("2022-12-09T08:26:54.123Z"), Ok(1_670_574_414_123));
        assert_eq!(
            millis("2022-12-09T16:26:54.123+08:00"),
            Ok(1_670_574_414_123)
        );
        assert_eq!(millis("1000y"), Ok(0));
        let now = UnixMillis::now().as_millis();
        let back = now - millis("2h").unwrap();
        assert!((7_190_000..=7_200_000).contains(&back), "{back}");
        for wrong in ["", "yesterday", "2022-12-09", "-2h", "2022-12-09T08:26:54"] {
            assert!(millis(wrong).is_err(), "{wrong}");
        }
    }
}
