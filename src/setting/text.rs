//! Deserializes a setting from text, or from a number or boolean of TOML.

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};

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
            text.parse().map_err(E::custom)
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

/// [`text`] for a whole number between two limits, both included.
///
/// # Errors
/// Names the limits.
pub fn number<'de, D, T, const MIN: i64, const MAX: i64>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i64>,
{
    let number = text::<D, String>(deserializer)?.parse().ok();
    number
        .filter(|number| (MIN..=MAX).contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| de::Error::custom(format!("must be a whole number from {MIN} to {MAX}")))
}

/// [`text`] for the address that a listener binds to.
///
/// # Errors
/// Shows the form.
pub fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let form = "must be an IP address and a port, such as 0.0.0.0:8080 or [::]:8080; not a host name or a URL";
    let text: String = text(deserializer)?;
    text.parse().map_err(|_| de::Error::custom(form))
}

/// [`text`] for the path of a file.
///
/// # Errors
/// Refuses what a shell or another program reads as a path, but would become a file with a strange name here.
pub fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let text: String = text(deserializer)?;
    // Programs agree on the scheme `file:` alone, but `sqlite:` or `s3:` is meant as one, too.
    let scheme = text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|char: char| char.is_ascii_alphabetic())
            && scheme
                .chars()
                .all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char))
    });
    let problem = if scheme {
        "must be a path, not a URI: leave out the scheme, or begin with `./` if that is the file's name"
    } else if text.starts_with('~') {
        "begins with `~`, which only a shell replaces; write the home folder's path"
    } else if text.contains('"') {
        "has a quote; remove it"
    } else if text.ends_with('/') || Path::new(&text).file_name().is_none() {
        "names a folder; add the file's name"
    } else {
        return Ok(text.into());
    };
    Err(de::Error::custom(problem))
}

/// [`path`] for an optional setting.
///
/// # Errors
/// As [`path`].
pub fn optional_path<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<PathBuf>, D::Error> {
    path(deserializer).map(Some)
}
