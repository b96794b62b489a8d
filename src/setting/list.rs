//! Several values of one setting.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use super::text::text;

/// The error for an element without text. It quotes nothing, so it may also be shown for a secret.
pub const EMPTY_ELEMENT: &str = "has an empty element; remove it";

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
                        return Err(de::Error::custom(EMPTY_ELEMENT));
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

impl<T: fmt::Display> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::Secret;

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
}
