//! Lengths of time.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

/// The longest length of time. Adding a longer one to a time may overflow.
const LONGEST: Duration = Duration::from_secs(1000 * 31_557_600);

/// A length of time that may be zero, written `90s`, `24h` or `500ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period(pub Duration);

/// A length of time that is never zero: a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeout(Duration);

impl Timeout {
    /// A limit of `seconds`.
    ///
    /// # Panics
    /// If `seconds` is zero. In a constant, this fails the compilation.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self::from_millis(seconds * 1000)
    }

    /// A limit of `millis` milliseconds.
    ///
    /// # Panics
    /// As [`Self::from_secs`].
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        assert!(millis > 0, "a limit of zero");
        Self(Duration::from_millis(millis))
    }
}

impl Deref for Timeout {
    type Target = Duration;

    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let duration = humantime::parse_duration(text)
            .map_err(|error| format!("not a duration such as `30s`, `500ms` or `24h`: {error}"))?;
        if duration > LONGEST {
            return Err("must not be longer than 1000 years".to_owned());
        }
        Ok(Self(duration))
    }
}

impl FromStr for Timeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Period(duration) = text.parse()?;
        if duration.is_zero() {
            return Err("must be longer than zero".to_owned());
        }
        Ok(Self(duration))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.subsec_nanos().is_multiple_of(1_000_000) {
            return humantime::format_duration(self.0).fmt(f);
        }
        let millis = self.0.as_millis();
        let units = [(3_600_000, "h"), (1000, "s")];
        match units
            .iter()
            .find(|(unit, _)| millis >= *unit && millis.is_multiple_of(*unit))
        {
            Some((unit, name)) => write!(f, "{}{name}", millis / unit),
            None if millis == 0 => f.write_str("0s"),
            None => write!(f, "{millis}ms"),
        }
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Period(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_may_be_zero_but_a_timeout_may_not() {
        assert_eq!("0s".parse::<Period>().unwrap(), Period(Duration::ZERO));
        assert_eq!(
            "0s".parse::<Timeout>().unwrap_err(),
            "must be longer than zero"
        );
        assert_eq!("24h".parse::<Timeout>().unwrap().to_string(), "24h");
        assert_eq!("90s".parse::<Timeout>().unwrap().to_string(), "90s");
    }

    #[test]
    fn only_durations_of_up_to_1000_years_are_accepted() {
        assert_eq!("1000y".parse::<Period>().unwrap(), Period(LONGEST));
        for text in ["1001y", "99999999999y", "30", "-1s", "1e3s", "١s", "+ 1s"] {
            text.parse::<Period>().unwrap_err();
        }
    }

    #[test]
    fn sub_millisecond_durations_are_displayed_exactly() {
        for (text, shown) in [
            ("1us", "1us"),
            ("1.0005s", "1s 500us"),
            ("1500us", "1ms 500us"),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.to_string(), shown);
            assert_eq!(shown.parse(), Ok(period));
        }
    }
}
