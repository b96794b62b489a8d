//! How long each attack lasts.

use std::env;
use std::time::Duration;

/// The short form is part of every test run; the table of the documents is of the long one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Short,
    Long,
}

impl Form {
    /// The form that `RECALL_TEST_HOSTILE` selects.
    pub fn read() -> Self {
        match env::var_os("RECALL_TEST_HOSTILE").as_deref() {
            None => Self::Short,
            Some(form) if form == "short" => Self::Short,
            Some(form) if form == "long" => Self::Long,
            Some(other) => panic!(
                "RECALL_TEST_HOSTILE is {}, not short or long",
                other.display()
            ),
        }
    }

    /// How long honest callbacks run alone before the attack.
    pub const fn quiet(self) -> Duration {
        match self {
            Self::Short => Duration::from_millis(500),
            Self::Long => Duration::from_secs(10),
        }
    }

    /// The minimum percentage of the callbacks that is answered on kept connections.
    pub const fn min_kept(self) -> usize {
        match self {
            Self::Short => 30,
            Self::Long => 45,
        }
    }

    /// How long the attack goes on.
    pub const fn attack(self) -> Duration {
        match self {
            Self::Short => Duration::from_millis(2500),
            Self::Long => Duration::from_secs(30),
        }
    }
}
