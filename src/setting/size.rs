//! Numbers of bytes.

use std::fmt;
use std::str::FromStr;

use bytesize::ByteSize;

/// The largest size.
const LARGEST: u64 = 1 << 60;

/// A number of bytes, written `64MiB`, `10MB` or `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: ByteSize = text
            .parse()
            .map_err(|_| "not a size such as `4096`, `256KiB` or `1GiB`")?;
        match size.as_u64() {
            // The parser reads larger sizes as the largest number.
            size if size > LARGEST => Err("must not be larger than 1EiB".to_owned()),
            size => Ok(Self(size)),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units
            .iter()
            .find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit))
        {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_display_as_written() {
        for text in ["256KiB", "1GiB", "64MiB", "4097", "0"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!("10MB".parse::<Size>().unwrap(), Size(10_000_000));
        assert_eq!("1EiB".parse::<Size>().unwrap(), Size(LARGEST));
        for text in [
            "many",
            "-1",
            "1e3",
            "0x10",
            "1_000",
            "٤KiB",
            "2EiB",
            "99999999999GiB",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
