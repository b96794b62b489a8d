//! Several values of one setting.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use super::clean::clean;
use super::text::text;

/// The error for a value that has nothing but white space, quotes or commas.
pub(crate) const EMPTY: &str = "is empty; set it, or remove it";

/// Several values, at least one: separated by commas or line breaks in text, one value or an array in TOML. The default
/// has none.
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

impl<T: FromStr<Err: fmt::Display>> FromStr for List<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let items: Vec<&str> = text.split([',', '\r', '\n']).collect();
        let items = match items.as_slice() {
            // The whole text is this value, so its quotes are gone already.
            [item] => vec![item.trim()],
            _ => items.into_iter().map(clean).collect(),
        };
        Self::parse(items.into_iter().filter(|item| !item.is_empty()).collect())
    }
}

impl<T: FromStr<Err: fmt::Display>> List<T> {
    fn parse(items: Vec<&str>) -> Result<Self, String> {
        if items.is_empty() {
            return Err(EMPTY.to_owned());
        }
        let count = items.len();
        let values = (1..).zip(items).map(|(place, item)| {
            item.parse().map_err(|error| match count {
                1 => format!("{error}"),
                _ => format!("{error} (value {place} of {count})"),
            })
        });
        values.collect::<Result<_, _>>().map(Self)
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
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<List<T>, E> {
                self.visit_str(&value.to_string())
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<List<T>, E> {
                self.visit_str(&value.to_string())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List<T>, A::Error> {
                let mut texts = Vec::new();
                while let Some(Item(text)) = items.next_element()? {
                    texts.push(text);
                }
                List::parse(texts.iter().map(String::as_str).collect()).map_err(de::Error::custom)
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

impl<T: fmt::Display> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_parse_from_text_one_value_or_an_array() {
        let read = |json: &str| serde_json::from_str::<List<u64>>(json).map(|list| list.0);
        assert_eq!(read(r#"" 1, 2,,3 ""#).unwrap(), [1, 2, 3]);
        assert_eq!(read(r#""1\r\n2\n\n""#).unwrap(), [1, 2]);
        assert_eq!(read(r#""'1', '2'""#).unwrap(), [1, 2]);
        assert_eq!(read("7").unwrap(), [7]);
        assert_eq!(read(r#"[1,"2"]"#).unwrap(), [1, 2]);
        let error = read(r#""1,x""#).unwrap_err().to_string();
        assert!(error.contains("(value 2 of 2)"), "{error}");
    }

    #[test]
    fn a_list_of_nothing_is_refused() {
        for json in [r#""""#, r#"" , ,""#, r#""'',''""#, "[]"] {
            let error = serde_json::from_str::<List<String>>(json).unwrap_err();
            let error = error.to_string();
            assert!(error.starts_with(EMPTY), "{json}: {error}");
        }
    }

    #[test]
    fn quotes_are_removed_once() {
        let read = |text: &str| clean(text).parse::<List<String>>().unwrap().0;
        assert_eq!(read(r#""a","b""#), ["a", "b"]);
        assert_eq!(read(r#""a,b""#), ["a", "b"]);
        assert_eq!(read(r#"'"a"'"#), [r#""a""#]);
    }
}
