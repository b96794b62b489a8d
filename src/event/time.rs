//! A point in time, as the protocol and the event represent it.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use serde::{Serialize, Serializer};

/// Milliseconds since the Unix epoch; displayed as RFC 3339 in UTC with three decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixMillis(pub(super) i64);

impl UnixMillis {
    /// The time `millis` milliseconds after the Unix epoch; none if it is after the year 9999.
    #[must_use]
    pub fn new(millis: u64) -> Option<Self> {
        let millis = i64::try_from(millis).ok()?;
        Timestamp::from_millisecond(millis).ok()?;
        Some(Self(millis))
    }

    /// The system clock's time; the epoch if the clock is outside the range of [`Self::new`].
    #[must_use]
    pub fn now() -> Self {
        Self::of(SystemTime::now()).unwrap_or(Self(0))
    }

    /// A time of the system clock; none if it is outside the range of [`Self::new`].
    #[must_use]
    pub fn of(time: SystemTime) -> Option<Self> {
        let since = time.duration_since(UNIX_EPOCH).ok()?;
        Self::new(u64::try_from(since.as_millis()).ok()?)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }
}

const RFC_3339: DateTimePrinter = DateTimePrinter::new().precision(Some(3));

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = Timestamp::from_millisecond(self.0).unwrap_or(Timestamp::UNIX_EPOCH);
        f.write_str(&RFC_3339.timestamp_to_string(&time))
    }
}

impl Serialize for UnixMillis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_string())
    }
}
