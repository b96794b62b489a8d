//! A callback's body as JSON, read as RFC 8259 allows and only as far as a recall needs it.
//!
//! The whole text must be JSON, but a value is not converted before somebody asks for it. So a number that no type can
//! hold, a string with a lone surrogate or a deeply nested value makes only its own field unusable, not the callback.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A JSON object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Object<'a>(Vec<(Cow<'a, str>, Value<'a>)>);

impl<'a> Object<'a> {
    /// Parses a JSON object; none if the text is anything else.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// A field's value. The last field of that name counts, as with most parsers: a filter in front of the relay, or a
    /// subscriber that reads a rejected body, sees the same value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value<'a>> {
        let mut from_last = self.0.iter().rev();
        from_last.find_map(|(field, value)| (field == name).then_some(value))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Object<'de>, M::Error> {
        let mut fields = Vec::new();
        while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            // No field of ours has a name with a lone surrogate.
            if let Value::Text(name) = Value::from(name) {
                fields.push((name, Value::from(value)));
            }
        }
        Ok(Object(fields))
    }
}

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// A string.
    Text(Cow<'a, str>),
    /// Anything else, as it stands in the body. Also a string with a lone surrogate, which is not Unicode text.
    Other(&'a str),
}

impl<'a> From<&'a RawValue> for Value<'a> {
    fn from(raw: &'a RawValue) -> Self {
        let json = raw.get();
        let quoted = json
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'));
        match quoted {
            None => Self::Other(json),
            Some(text) if !text.contains('\\') => Self::Text(Cow::Borrowed(text)),
            Some(_) => serde_json::from_str(json)
                .map_or(Self::Other(json), |text| Self::Text(Cow::Owned(text))),
        }
    }
}

impl<'a> Value<'a> {
    /// The string, if it is one.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Other(_) => None,
        }
    }

    /// The elements, if it is an array. An element that is not an object has no fields.
    #[must_use]
    pub fn as_objects(&self) -> Option<Vec<Object<'a>>> {
        let Self::Other(json) = self else {
            return None;
        };
        let elements: Vec<&RawValue> = serde_json::from_str(json).ok()?;
        let objects = elements.into_iter();
        Some(
            objects
                .map(|json| Object::parse(json.get()).unwrap_or_default())
                .collect(),
        )
    }

    /// The unsigned 64-bit integer that a number equals (`130`, `130.0`, `1.3e2`) or that a string of decimal digits
    /// represents.
    #[must_use]
    pub fn as_unsigned(&self) -> Option<u64> {
        match self {
            Self::Text(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            Self::Text(_) => None,
            Self::Other(json) => json.parse().ok().or_else(|| exact_integer(json)),
        }
    }
}

/// The integer that a JSON number with a fraction or an exponent equals. It is computed in decimal: as a floating-point
/// number, a large `MsgSeq` would become another one.
fn exact_integer(json: &str) -> Option<u64> {
    if !json.ends_with(|last: char| last.is_ascii_digit()) {
        return None;
    }
    let (mantissa, exponent) = json.split_once(['e', 'E']).unwrap_or((json, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    if significant.trim_start_matches(['-', '0']).is_empty() {
        return Some(0);
    }
    // How many zeros follow `significant` in the integer.
    let trailing = i64::try_from(digits.len() - significant.len()).ok()?;
    let fraction = i64::try_from(fraction.len()).ok()?;
    let exponent: i64 = exponent.parse().ok()?;
    let zeros = exponent.checked_add(trailing - fraction)?;
    let power = 10_u64.checked_pow(u32::try_from(zeros).ok()?)?;
    significant.parse::<u64>().ok()?.checked_mul(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value<'_> {
        Value::from(serde_json::from_str::<&RawValue>(json).unwrap())
    }

    #[test]
    fn a_number_is_the_integer_that_it_equals() {
        for (json, expected) in [
            ("130", Some(130)),
            ("130.0", Some(130)),
            ("1.3e2", Some(130)),
            ("1.30E+2", Some(130)),
            ("0.0130e4", Some(130)),
            ("13000e-2", Some(130)),
            ("130.000e0", Some(130)),
            ("0", Some(0)),
            ("-0", Some(0)),
            ("-0.0e-9", Some(0)),
            ("0e99999999999999999999", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551615.0", Some(u64::MAX)),
            ("1844674407370955161.5e1", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("1.8446744073709551616e19", None),
            ("1e19", Some(10_000_000_000_000_000_000)),
            ("1e20", None),
            ("1e400", None),
            ("1e99999999999999999999", None),
            ("1e-99999999999999999999", None),
            ("1e9223372036854775807", None),
            ("0.1e-9223372036854775808", None),
            ("130.5", None),
            ("13e-1", None),
            ("-1", None),
            ("-130.0", None),
            ("true", None),
            ("null", None),
            ("[1]", None),
            (r#"{"a":1}"#, None),
            (r#""130""#, Some(130)),
            (r#""0130""#, Some(130)),
            (r#""\u0031""#, Some(1)),
            (r#""""#, None),
            (r#""130.0""#, None),
            (r#""+1""#, None),
            (r#"" 1""#, None),
            (r#""\ud800""#, None),
        ] {
            assert_eq!(value(json).as_unsigned(), expected, "{json}");
        }
    }

    #[test]
    fn strings_are_unescaped_and_a_lone_surrogate_is_no_text() {
        assert_eq!(value(r#""a b""#).as_text(), Some("a b"));
        assert_eq!(
            value(r#""\u00e9\n\ud83d\ude00\"""#).as_text(),
            Some("é\n😀\"")
        );
        assert_eq!(value(r#""\ud800""#).as_text(), None);
        assert_eq!(value("1").as_text(), None);
    }

    #[test]
    fn the_last_field_of_a_name_counts_however_the_name_is_written() {
        let object = Object::parse(r#"{"a":"1","\u0061":"2","b":"3","\ud800":"4"}"#).unwrap();
        assert_eq!(object.get("a").and_then(Value::as_text), Some("2"));
        assert_eq!(object.0.len(), 3);
    }

    #[test]
    fn only_objects_have_fields_and_only_arrays_have_elements() {
        for json in [
            "[]",
            "1",
            "null",
            r#""{}""#,
            "{",
            r#"{"a":1,}"#,
            r#"{"a":01}"#,
            "{} {}",
            "\u{feff}{}",
        ] {
            assert!(Object::parse(json).is_none(), "{json}");
        }
        let list = value(r#"[{"a":"1"}, 7, [], {}]"#).as_objects().unwrap();
        let found: Vec<_> = list
            .iter()
            .map(|object| object.get("a").and_then(Value::as_text))
            .collect();
        assert_eq!(found, [Some("1"), None, None, None]);
        assert!(value("{}").as_objects().is_none());
        assert!(value(r#""[]""#).as_objects().is_none());
    }
}
