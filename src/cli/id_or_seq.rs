//! Names an event on the command line.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::event::Seq;

/// The id of an event, or its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum IdOrSeq {
    Id(Uuid),
    Seq(Seq),
}

impl FromStr for IdOrSeq {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A UUID may consist of digits only, but is longer than any number.
        if let Ok(seq) = text.parse() {
            return Ok(Self::Seq(Seq(seq)));
        }
        text.parse()
            .map(Self::Id)
            .map_err(|_| "neither an event's id (a UUID) nor its number")
    }
}

impl fmt::Display for IdOrSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Seq(seq) => seq.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_named_by_its_id_or_its_number() {
        let id = "e623ed2b-c5ef-5b1b-a59b-1584672e69fa";
        assert_eq!(id.parse(), Ok(IdOrSeq::Id(id.parse().unwrap())));
        assert_eq!("1042".parse(), Ok(IdOrSeq::Seq(Seq(1042))));
        let digits = "00000000-0000-0000-0000-000000000001";
        assert_eq!(digits.parse(), Ok(IdOrSeq::Id(Uuid::from_u128(1))));
        for wrong in ["", "-1", "1.5", "e623ed2b", "newest"] {
            assert!(wrong.parse::<IdOrSeq>().is_err(), "{wrong}");
        }
    }
}
