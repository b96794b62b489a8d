//! The event of a record in structured mode: the inverse of `message`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rdkafka::message::Headers;
use serde_json::value::RawValue;

use crate::event::CONTENT_TYPE;

/// The header of the content type, and the prefix of the headers of attributes in binary mode.
const CONTENT_TYPE_HEADER: &str = "content-type";
const ATTRIBUTE_PREFIX: &str = "ce_";

/// The attributes in the order in which the relay publishes them; others follow. So the bytes of an event are the same
/// in both modes.
const ORDER: [&str; 9] = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "datacontenttype",
    "dataschema",
    "partitionkey",
];

/// The event in a record with these headers and this value.
///
/// # Errors
/// Says why there is none.
pub(super) fn event_bytes<'a>(
    headers: Option<&impl Headers>,
    value: Option<&'a [u8]>,
) -> Result<Cow<'a, [u8]>, String> {
    let value = value.ok_or("not an event: the record has no value")?;
    let texts = headers.into_iter().flat_map(Headers::iter);
    let texts = texts.filter_map(|header| Some((header.key, str::from_utf8(header.value?).ok()?)));
    let mut attributes = BTreeMap::new();
    for (name, text) in texts {
        if let Some(name) = name.strip_prefix(ATTRIBUTE_PREFIX) {
            attributes.insert(name, text);
        } else if name == CONTENT_TYPE_HEADER && text.starts_with(CONTENT_TYPE) {
            return Ok(value.into());
        } else if name == CONTENT_TYPE_HEADER {
            attributes.insert("datacontenttype", text);
        }
    }
    if attributes.contains_key("id") {
        binary(attributes, value).map(Cow::Owned)
    } else {
        // Another producer may have left out the content type.
        Ok(value.into())
    }
}

/// The id of the event in a record.
pub(super) fn has_id(headers: Option<&impl Headers>, value: Option<&[u8]>, id: uuid::Uuid) -> bool {
    #[derive(serde::Deserialize)]
    struct Identified {
        id: uuid::Uuid,
    }

    let is_header = |headers: &_| {
        let mut headers = Headers::iter(headers);
        headers.any(|header| {
            let value = header.value.and_then(|value| str::from_utf8(value).ok());
            header.key == "ce_id" && value.and_then(|value| value.parse().ok()) == Some(id)
        })
    };
    headers.is_some_and(is_header)
        || value
            .and_then(|value| serde_json::from_slice(value).ok())
            .is_some_and(|found: Identified| found.id == id)
}

fn binary(mut attributes: BTreeMap<&str, &str>, data: &[u8]) -> Result<Vec<u8>, String> {
    let data: &RawValue = serde_json::from_slice(data)
        .map_err(|error| format!("not an event: data is not JSON: {error}"))?;
    let ordered: Vec<_> = ORDER
        .into_iter()
        .filter_map(|name| attributes.remove_entry(name))
        .collect();
    let mut bytes = vec![b'{'];
    for (name, text) in ordered.into_iter().chain(attributes) {
        for (text, end) in [(name, b':'), (text, b',')] {
            serde_json::to_writer(&mut bytes, text).map_err(|error| error.to_string())?;
            bytes.push(end);
        }
    }
    bytes.extend_from_slice(b"\"data\":");
    bytes.extend_from_slice(data.get().as_bytes());
    bytes.push(b'}');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders};

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> OwnedHeaders {
        pairs
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| {
                let value = Some(*value);
                headers.insert(Header { key, value })
            })
    }

    #[test]
    fn a_value_without_headers_is_an_event_in_structured_mode() {
        let none: Option<&OwnedHeaders> = None;
        assert_eq!(event_bytes(none, Some(b"{}")).unwrap(), &b"{}"[..]);
        let structured = headers(&[(
            "content-type",
            "application/cloudevents+json; charset=utf-8",
        )]);
        assert_eq!(
            event_bytes(Some(&structured), Some(b"{}")).unwrap(),
            &b"{}"[..]
        );
    }

    #[test]
    fn what_has_no_value_or_no_json_is_an_error() {
        let binary = headers(&[("ce_id", "1"), ("content-type", "text/plain")]);
        let error = event_bytes(Some(&binary), Some(b"hello")).unwrap_err();
        assert!(error.contains("data is not JSON"), "{error}");
        let error = event_bytes(Some(&binary), None).unwrap_err();
        assert!(error.contains("no value"), "{error}");
    }

    #[test]
    fn an_id_is_found_in_either_mode() {
        let id = uuid::Uuid::from_u128(1);
        let (none, value): (Option<&OwnedHeaders>, _) = (None, format!(r#"{{"id":"{id}"}}"#));
        assert!(has_id(none, Some(value.as_bytes()), id));
        assert!(!has_id(none, Some(value.as_bytes()), uuid::Uuid::nil()));
        assert!(!has_id(none, Some(b"hello"), id));
        assert!(!has_id(none, None, id));
        let text = id.to_string();
        let binary = headers(&[("ce_source", "s"), ("ce_id", &text)]);
        assert!(has_id(Some(&binary), Some(b"{}"), id));
        assert!(!has_id(Some(&binary), Some(b"{}"), uuid::Uuid::nil()));
    }
}
