//! Converts an event to an AMQP message: its exchange, routing key and properties.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use super::config::Config;
use crate::event::{CONTENT_TYPE, Event, Kind};
use crate::sink::Delivery;

/// The `delivery_mode` of a message that survives a broker restart.
const PERSISTENT: u8 = 2;

/// Maximum characters of each part of a routing key.
const MAX_PART_CHARS: usize = 64;

/// The exchange and the routing key. The default exchange routes a dead letter to the queue of that name.
pub(super) fn destination(delivery: &Delivery, config: &Config) -> (ShortString, ShortString) {
    if delivery.is_dead_letter() {
        (ShortString::default(), config.dead_letter_queue.as_amqp())
    } else {
        (
            config.exchange.as_amqp(),
            short(&routing_key(&delivery.event)),
        )
    }
}

pub(super) fn properties(delivery: &Delivery) -> BasicProperties {
    let event = &delivery.event;
    let seconds = event.time.as_millis().div_euclid(1000);
    let mut properties = BasicProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(event.id.to_string().into())
        .with_app_id("recall-relay".into())
        .with_type(event.kind.event_type().into())
        .with_timestamp(seconds.unsigned_abs());
    if let Some(refusal) = &delivery.refusal {
        let mut headers = FieldTable::default();
        let mut add = |name: &str, value: &str| {
            headers.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
        };
        add("recall_reason", refusal.reason);
        add("recall_detail", &refusal.detail);
        properties = properties.with_headers(headers);
    }
    properties
}

/// `<app>.<kind>.<group type>`, without the parts that the event does not have.
pub(super) fn routing_key(event: &Event) -> String {
    let mut key = event.sdk_app_id().to_owned();
    let kind = (event.kind != Kind::Rejected).then_some(event.kind.name());
    for part in [kind, event.group_type.as_deref()].into_iter().flatten() {
        key.push('.');
        key.extend(part.chars().take(MAX_PART_CHARS).map(|char| match char {
            'A'..='Z' | 'a'..='z' | '0'..='9' | '_' | '-' => char,
            _ => '_',
        }));
    }
    key
}

/// Text for an AMQP short string, cut to 255 bytes: lapin panics if it is longer.
fn short(text: &str) -> ShortString {
    text[..text.floor_char_boundary(255)].into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::event::{
        Client, Conversation, Recalled, RecalledMessage, Seq, UnixMillis, tests::event,
    };
    use crate::sink::Refusal;

    fn key(kind: Kind, group_type: Option<&str>) -> String {
        routing_key(&Event {
            kind,
            conversation: "7:a:b".into(),
            group_type: group_type.map(Into::into),
            ..event(1, "")
        })
    }

    #[test]
    fn the_routing_key_has_application_kind_and_group_type() {
        assert_eq!(key(Kind::Group, Some("Public")), "7.group.Public");
        assert_eq!(key(Kind::Group, None), "7.group");
        assert_eq!(key(Kind::C2c, None), "7.c2c");
        assert_eq!(key(Kind::OfficialAccount, None), "7.official_account");
    }

    #[test]
    fn routing_key_parts_are_sanitized_and_truncated() {
        assert_eq!(key(Kind::Group, Some("a.b#*é c")), "7.group.a_b____c");
        let long = "x".repeat(300);
        assert_eq!(
            key(Kind::Group, Some(&long)),
            format!("7.group.{}", "x".repeat(64))
        );
    }

    #[test]
    fn the_message_timestamp_is_in_seconds() {
        let event = Event {
            time: UnixMillis::new(1_670_574_414_999).unwrap(),
            ..event(1, "")
        };
        let (seq, event, refusal) = (Seq(1), Arc::new(event), None);
        let properties = properties(&Delivery {
            seq,
            event,
            refusal,
            is_resent: false,
        });
        assert_eq!(*properties.timestamp(), Some(1_670_574_414));
    }

    proptest! {
        /// lapin panics if a short string is too long, and a `.` would add a part to the routing key.
        #[test]
        fn any_group_name_makes_a_valid_message(group_id in ".{0,300}", group_type in ".{0,300}", refused in any::<bool>()) {
            let recalled = Recalled {
                sdk_app_id: u64::MAX,
                command: "Group.CallbackAfterRecallMsg",
                conversation: Conversation::Group {
                    group_id: &group_id,
                    group_type: Some(&group_type),
                    topic_id: None,
                },
                operator_id: None,
                messages: vec![RecalledMessage::Group { seq: 1, id: None }],
                recalled_at: None,
                received_at: UnixMillis::new(1_670_574_414_201).unwrap(),
                client: Client::default(),
            };
            let refusal = refused.then(|| Refusal { reason: "r", detail: group_type.clone() });
            let delivery = Delivery { seq: Seq(1), event: Arc::new(recalled.event()), refusal, is_resent: false };
            let (exchange, routing_key) = destination(&delivery, &Config::default());
            prop_assert_eq!(properties(&delivery).headers().is_some(), refused);
            if refused {
                prop_assert_eq!(exchange.as_str(), "");
                prop_assert_eq!(routing_key.as_str(), "im.message.recalled.dead-letter");
            } else {
                let parts: Vec<&str> = routing_key.as_str().split('.').collect();
                prop_assert_eq!(&parts[..2], ["18446744073709551615", "group"]);
                prop_assert_eq!(parts.len(), 3);
            }
        }
    }
}
