//! An event as an AMQP message: where it goes and what it carries beside its bytes.

use std::sync::Arc;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use uuid::Uuid;

use super::Config;
use crate::event::{CONTENT_TYPE, Envelope, Seq};
use crate::sink::{Delivery, Refusal};

/// `delivery_mode` of a message that survives the broker.
const PERSISTENT: u8 = 2;

/// Characters of each part of a routing key.
const PART: usize = 64;

/// What there is to publish. Its properties are made when it is: they take twice its room, and most messages wait
/// for others of their conversation.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) seq: Seq,
    /// Messages with the same key are published one after the other; a dead letter has none.
    pub(super) key: Option<Arc<str>>,
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) id: Uuid,
    pub(super) body: Bytes,
    pub(super) r#type: Option<ShortString>,
    /// Unix seconds.
    pub(super) timestamp: Option<u64>,
    pub(super) refusal: Option<Refusal>,
}

impl Message {
    pub(super) fn new(delivery: &Delivery, config: &Config) -> Self {
        let event = &delivery.stored.event;
        let envelope = Envelope::parse(&event.bytes).ok();
        let envelope = envelope.as_ref();
        let (exchange, routing_key, key) = if delivery.is_dead_letter() {
            // The default exchange takes a message to the queue of that name.
            (
                ShortString::default(),
                config.dead_letter_queue.as_amqp(),
                None,
            )
        } else {
            let key = envelope.map(|envelope| Arc::from(&*envelope.partitionkey));
            let routing_key = envelope.map(routing_key).unwrap_or_default();
            (config.exchange.as_amqp(), short(&routing_key), key)
        };
        Self {
            seq: delivery.stored.seq,
            key,
            exchange,
            routing_key,
            id: event.id,
            body: event.bytes.clone(),
            r#type: envelope.map(|envelope| short(envelope.r#type)),
            timestamp: envelope
                .and_then(|envelope| envelope.time.parse::<jiff::Timestamp>().ok())
                .map(|time| time.as_second().unsigned_abs()),
            refusal: delivery.refusal.clone(),
        }
    }

    pub(super) fn properties(&self) -> BasicProperties {
        let mut properties = BasicProperties::default()
            .with_content_type(CONTENT_TYPE.into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(self.id.to_string().into())
            .with_app_id("recall-relay".into());
        if let Some(r#type) = &self.r#type {
            properties = properties.with_type(r#type.clone());
        }
        if let Some(timestamp) = self.timestamp {
            properties = properties.with_timestamp(timestamp);
        }
        if let Some(refusal) = &self.refusal {
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
}

/// `<app>.<kind>.<group type>`, without the last part where there is none.
fn routing_key(envelope: &Envelope<'_>) -> String {
    let mut key = envelope.data.sdk_app_id.to_string();
    if let Some(conversation) = &envelope.data.conversation {
        for part in [Some(conversation.kind), conversation.group_type.as_deref()]
            .into_iter()
            .flatten()
        {
            key.push('.');
            key.extend(part.chars().take(PART).map(|char| match char {
                'A'..='Z' | 'a'..='z' | '0'..='9' | '_' | '-' => char,
                _ => '_',
            }));
        }
    }
    key
}

/// Text for a field that AMQP limits to 255 bytes; lapin panics beyond.
fn short(text: &str) -> ShortString {
    text[..text.floor_char_boundary(255)].into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::event::{Client, Conversation, Millis, Recalled, Stored};

    fn key(data: &serde_json::Value) -> String {
        let event =
            json!({"id":"i","source":"s","type":"t","time":"x","partitionkey":"k","data":data});
        let bytes = serde_json::to_vec(&event).unwrap();
        routing_key(&Envelope::parse(&bytes).unwrap())
    }

    #[test]
    fn the_routing_key_tells_application_kind_and_group_type() {
        let group = json!({"sdk_app_id":7,"conversation":{"kind":"group","group_type":"Public"}});
        assert_eq!(key(&group), "7.group.Public");
        assert_eq!(
            key(&json!({"sdk_app_id":7,"conversation":{"kind":"c2c"}})),
            "7.c2c"
        );
        assert_eq!(key(&json!({"sdk_app_id":7})), "7");
    }

    #[test]
    fn odd_characters_and_long_parts_cannot_break_the_routing_key() {
        let group = json!({"sdk_app_id":7,"conversation":{"kind":"group","group_type":"a.b#*é c"}});
        assert_eq!(key(&group), "7.group.a_b____c");
        let long = "x".repeat(300);
        let group = json!({"sdk_app_id":7,"conversation":{"kind":"group","group_type":long}});
        assert_eq!(key(&group), format!("7.group.{}", "x".repeat(64)));
    }

    proptest! {
        /// lapin panics where a short text is longer than AMQP allows, and a `.` would be one more part.
        #[test]
        fn any_group_becomes_a_message(group_id in ".{0,300}", group_type in ".{0,300}", refused in any::<bool>()) {
            let recalled = Recalled {
                sdk_app_id: u64::MAX,
                command: "Group.CallbackAfterRecallMsg",
                conversation: Conversation::Group {
                    group_id: &group_id,
                    group_type: Some(&group_type),
                    topic_id: None,
                },
                operator_id: None,
                messages: vec![crate::event::Message::Group { seq: 1, id: None }],
                recalled_at: None,
                received_at: Millis::new(1_670_574_414_201).unwrap(),
                client: Client::default(),
            };
            let refusal = refused.then(|| Refusal { reason: "r", detail: group_type.clone() });
            let stored = Stored { seq: Seq(1), event: recalled.event() };
            let message = Message::new(&Delivery { stored, refusal }, &Config::default());
            if refused {
                prop_assert_eq!(message.key, None);
                prop_assert_eq!(message.routing_key.as_str(), "im.message.recalled.dead-letter");
            } else {
                prop_assert_eq!(message.key.as_deref(), Some(&*format!("{}:{group_id}", u64::MAX)));
                let parts: Vec<&str> = message.routing_key.as_str().split('.').collect();
                prop_assert_eq!(&parts[..2], ["18446744073709551615", "group"]);
                prop_assert_eq!(parts.len(), 3);
                let length = group_type.chars().count().min(64);
                prop_assert_eq!(parts[2].len(), length);
            }
        }
    }
}
