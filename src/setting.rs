//! The types that a setting's text is parsed into: durations, sizes, lists, secrets.
//!
//! Every setting can come from the environment, where every value is text, and from TOML, where numbers have
//! their own type. So each type here accepts both, and so does [`text`] for the types of other crates.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

/// Deserializes any type that can be parsed from text; a number or boolean is parsed as text, too.
///
/// # Errors
/// Fails if the value is neither text, number nor boolean, or if parsing it fails.
pub fn text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    struct Text<T>(PhantomData<T>);

    impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a single value")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.trim().parse().map_err(E::custom)
        }

        fn visit_bool<E: de::Error>(self, value: bool) -> Result<T, E> {
            self.visit_str(&value.to_string())
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
            self.visit_str(&value.to_string())
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
            self.visit_str(&value.to_string())
        }
    }

    deserializer.deserialize_any(Text(PhantomData))
}

/// [`text`] for an optional setting; empty text counts as absent.
///
/// # Errors
/// As [`text`].
pub fn optional_text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text: String = text(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(de::Error::custom)
}

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
        assert!(seconds > 0, "a limit of zero");
        Self(Duration::from_secs(seconds))
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
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|error| format!("not a duration such as `30s`, `500ms` or `24h`: {error}"))
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

/// A number of bytes, written `64MiB`, `10MB` or `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<ByteSize>()
            .map(|size| Self(size.as_u64()))
            .map_err(|error| format!("not a size such as `256KiB` or `1GiB`: {error}"))
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

/// Several values: separated by commas in text, one value or an array in TOML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);

        /// One element of an array, read as text whatever its type is.
        struct Item(String);

        impl<'de> Deserialize<'de> for Item {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text(deserializer).map(Self)
            }
        }

        impl<'de, T: FromStr<Err: fmt::Display>> Visitor<'de> for Items<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value, several separated by commas, or an array")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<List<T>, E> {
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(|item| item.parse().map_err(E::custom))
                    .collect::<Result<_, E>>()
                    .map(List)
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<List<T>, E> {
                self.visit_str(&value.to_string())
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<List<T>, E> {
                self.visit_str(&value.to_string())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(Item(item)) = items.next_element()? {
                    let item = item.trim();
                    if item.is_empty() {
                        // With an empty token anybody could sign. If it were skipped, nobody would have to sign.
                        return Err(de::Error::custom("has an empty element; remove it"));
                    }
                    list.push(item.parse().map_err(de::Error::custom)?);
                }
                Ok(List(list))
            }
        }

        deserializer.deserialize_any(Items(PhantomData))
    }
}

impl<T: fmt::Display> fmt::Display for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{item}")?;
        }
        Ok(())
    }
}

/// Text that is never shown: not by `Debug`, not by `Display`, not in an error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for code that must use it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "" } else { "[hidden]" })
    }
}

macro_rules! as_text {
    ($($type:ident),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text(deserializer)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

as_text!(Period, Timeout, Size, Secret);

impl<T: fmt::Display> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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
        assert!("many".parse::<Size>().is_err());
    }

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

    #[test]
    fn lists_parse_from_text_one_value_or_an_array() {
        let read = |json: &str| serde_json::from_str::<List<u64>>(json).map(|list| list.0);
        assert_eq!(read(r#"" 1, 2,,3 ""#).unwrap(), [1, 2, 3]);
        assert_eq!(read("7").unwrap(), [7]);
        assert_eq!(read(r#"[1,"2"]"#).unwrap(), [1, 2]);
        assert!(read(r#""1,x""#).is_err());
    }

    #[test]
    fn an_array_with_an_empty_element_is_refused() {
        for json in [r#"[""]"#, r#"["a"," "]"#] {
            let error = serde_json::from_str::<List<Secret>>(json).unwrap_err();
            let error = error.to_string();
            assert!(error.starts_with("has an empty element"), "{json}: {error}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secret: Secret = serde_json::from_str(r#""hunter2""#).unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "[hidden] [hidden]");
        assert_eq!(serde_json::to_string(&secret).unwrap(), r#""[hidden]""#);
    }
}
