//! Converts an event to a Kafka record: its headers and its value.

use std::collections::BTreeMap;

use rdkafka::message::{Header, OwnedHeaders};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::event::CONTENT_TYPE;
use crate::sink::Delivery;

/// How a record contains an event: a content mode of CloudEvents' Kafka protocol binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContentMode {
    /// The value is the whole event.
    Structured,
    /// The value is the event's `data`; the attributes are headers.
    Binary,
}

/// The parts of an event in binary mode, taken from its published bytes: every attribute becomes a header, including
/// those of events that another version of the relay has stored.
#[derive(Deserialize)]
struct BinaryParts<'a> {
    datacontenttype: String,
    #[serde(borrow)]
    data: &'a RawValue,
    /// All other attributes.
    #[serde(flatten)]
    attributes: BTreeMap<String, String>,
}

/// The headers and the value of a record.
pub(super) fn headers_and_value(delivery: &Delivery, mode: ContentMode) -> (OwnedHeaders, &[u8]) {
    let body = &delivery.event.body[..];
    let headers = OwnedHeaders::new_with_capacity(11);
    // The relay itself has made the bytes, and the spool has checked them. If parsing fails all the same, or an
    // attribute is not a string, the record is sent in structured mode, so nothing is lost; `content-type` says which
    // it is.
    let parts = match mode {
        ContentMode::Structured => None,
        ContentMode::Binary => serde_json::from_slice::<BinaryParts<'_>>(body).ok(),
    };
    let (mut headers, value) = match &parts {
        // Without any `ce_` header: subscribers may take a record that has one for a record in binary mode.
        None => (with(headers, "content-type", CONTENT_TYPE), body),
        Some(parts) => {
            let headers = with(headers, "content-type", &parts.datacontenttype);
            let attributes = parts.attributes.iter();
            let headers = attributes.fold(headers, |headers, (name, value)| {
                with(headers, &format!("ce_{name}"), value)
            });
            (headers, parts.data.get().as_bytes())
        }
    };
    if let Some(refusal) = &delivery.refusal {
        headers = with(headers, "recall_reason", refusal.reason);
        headers = with(headers, "recall_detail", &refusal.detail);
    }
    (headers, value)
}

fn with(headers: OwnedHeaders, key: &str, value: &str) -> OwnedHeaders {
    let value = Some(value);
    headers.insert(Header { key, value })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rdkafka::message::Headers as _;
    use serde_json::{Map, Value, json};

    use super::super::event_bytes::event_bytes;
    use super::*;
    use crate::event::{
        Client, Conversation, Event, Recalled, RecalledMessage, Rejected, Seq, UnixMillis,
        tests::event,
    };
    use crate::sink::Refusal;

    fn recalled(group_id: &str) -> Event {
        let recalled = Recalled {
            sdk_app_id: 7,
            command: "Group.CallbackAfterRecallMsg",
            conversation: Conversation::Group {
                group_id,
                group_type: None,
                topic_id: None,
            },
            operator_id: None,
            messages: vec![RecalledMessage::Group { seq: 1, id: None }],
            recalled_at: None,
            received_at: UnixMillis::new(0).unwrap(),
            client: Client::default(),
        };
        recalled.event()
    }

    fn rejected() -> Event {
        let rejected = Rejected {
            sdk_app_id: 7,
            reason: "not_json",
            detail: "body is not JSON",
            command: None,
            query: "SdkAppid=7",
            body: b"{\"data\":",
            received_at: UnixMillis::new(0).unwrap(),
        };
        rejected.event()
    }

    fn delivery(event: Event, refusal: Option<Refusal>) -> Delivery {
        Delivery {
            seq: Seq(1),
            event: Arc::new(event),
            refusal,
            is_resent: false,
        }
    }

    fn headers_of(headers: &OwnedHeaders) -> Vec<(&str, &str)> {
        let text = |value: Option<_>| std::str::from_utf8(value.unwrap()).unwrap();
        let headers = headers.iter();
        headers
            .map(|header| (header.key, text(header.value)))
            .collect()
    }

    #[test]
    fn binary_mode_has_every_attribute_as_a_header_and_data_as_it_was_published() {
        // Escaped in JSON, and plain in a header.
        for event in [
            recalled("g"),
            recalled("\"\\\u{1}\n\u{e9}\u{1f600}"),
            rejected(),
        ] {
            let delivery = delivery(event, None);
            let (headers, value) = headers_and_value(&delivery, ContentMode::Binary);
            let mut expected: Map<String, Value> =
                serde_json::from_slice(&delivery.event.body).unwrap();
            let data = expected.remove("data").unwrap();
            assert_eq!(serde_json::from_slice::<Value>(value).unwrap(), data);
            let published = std::str::from_utf8(&delivery.event.body).unwrap();
            let value = std::str::from_utf8(value).unwrap();
            assert!(
                published.ends_with(&format!(r#","data":{value}}}"#)),
                "{value}"
            );

            let again = event_bytes(Some(&headers), Some(value.as_bytes())).unwrap();
            assert_eq!(again, published.as_bytes());

            let content_type = expected.remove("datacontenttype").unwrap();
            let headers = headers_of(&headers);
            assert_eq!(headers[0].0, "content-type");
            assert_eq!(headers[0].1, content_type);
            let found: Map<String, Value> = headers[1..]
                .iter()
                .map(|(name, value)| (name.strip_prefix("ce_").unwrap().to_owned(), json!(value)))
                .collect();
            assert_eq!(found, expected);
            assert_eq!(headers.len(), found.len() + 1, "{headers:?}");
        }
    }

    #[test]
    fn an_event_that_another_version_stored_keeps_its_attributes_and_its_data() {
        let body = r#"{ "data" : {"b": 1.50, "a": [ ]} , "later":"x", "datacontenttype":"application/json;v=2"}"#;
        let delivery = delivery(event(1, body), None);
        let (headers, value) = headers_and_value(&delivery, ContentMode::Binary);
        assert_eq!(value, br#"{"b": 1.50, "a": [ ]}"#);
        assert_eq!(
            headers_of(&headers),
            [("content-type", "application/json;v=2"), ("ce_later", "x")]
        );
    }

    /// The official SDK for Python takes a record with any `ce_` header for one in binary mode.
    #[test]
    fn structured_mode_has_no_attribute_as_a_header() {
        for (event, refused) in [
            (recalled("g"), false),
            (recalled("g"), true),
            (rejected(), false),
        ] {
            let refusal = refused.then(|| Refusal {
                reason: "too_large",
                detail: "by 1 byte".to_owned(),
            });
            let delivery = delivery(event, refusal);
            let (headers, value) = headers_and_value(&delivery, ContentMode::Structured);
            assert_eq!(value, &delivery.event.body[..]);
            let mut expected = vec![("content-type", "application/cloudevents+json")];
            if refused {
                expected.extend([
                    ("recall_reason", "too_large"),
                    ("recall_detail", "by 1 byte"),
                ]);
            }
            assert_eq!(headers_of(&headers), expected);
        }
    }

    #[test]
    fn bytes_that_cannot_be_parsed_are_published_in_structured_mode() {
        for body in ["", "{", "{}", r#"{"data":{}}"#, "\u{0}"] {
            let delivery = delivery(event(1, body), None);
            let (headers, value) = headers_and_value(&delivery, ContentMode::Binary);
            assert_eq!(value, body.as_bytes());
            let expected = [("content-type", "application/cloudevents+json")];
            assert_eq!(headers_of(&headers), expected);
        }
    }
}
