//! Any bytes as an event that is read back from the spool, and any text in every place of an event.
//!
//! What is read of bytes is what their JSON says; what is put in comes back.
#![no_main]

use std::borrow::Cow;

use libfuzzer_sys::fuzz_target;
use recall_relay::event::{Client, Conversation, Envelope, Message, Millis, Recalled};
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    check_read(bytes);
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(5, '\n');
    let mut next = || parts.next().filter(|part| !part.is_empty());
    check_written(
        next().unwrap_or("g"),
        next(),
        next(),
        next(),
        next(),
        u64::from_le_bytes(first_eight(bytes)),
    );
});

fn check_read(bytes: &[u8]) {
    let Ok(envelope) = Envelope::parse(bytes) else {
        return;
    };
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else {
        // A part that is not looked at need not be UTF-8; the spool has a checksum for that.
        return;
    };
    if !value.is_object() || !value["data"].is_object() {
        // The parser takes a list for an object with its fields in that order.
        return;
    }
    assert_eq!(value["id"], envelope.id);
    assert_eq!(value["source"], envelope.source);
    assert_eq!(value["type"], envelope.r#type);
    assert_eq!(value["time"], envelope.time);
    assert_eq!(value["subject"].as_str(), envelope.subject.as_deref());
    assert_eq!(value["partitionkey"], *envelope.partitionkey);
    assert_eq!(value["data"]["sdk_app_id"], envelope.data.sdk_app_id);
    let conversation = &value["data"]["conversation"];
    let read = envelope.data.conversation;
    if !conversation.is_array() {
        assert_eq!(
            conversation["kind"].as_str(),
            read.as_ref().map(|read| read.kind)
        );
        assert_eq!(
            conversation["group_type"].as_str(),
            read.as_ref().and_then(|read| read.group_type.as_deref())
        );
    }
}

fn check_written(
    group_id: &str,
    topic_id: Option<&str>,
    group_type: Option<&str>,
    operator_id: Option<&str>,
    id: Option<&str>,
    number: u64,
) {
    let recalled = Recalled {
        sdk_app_id: number,
        command: "Group.CallbackAfterRecallMsg",
        conversation: Conversation::Group {
            group_id,
            group_type,
            topic_id,
        },
        operator_id,
        messages: vec![Message::Group { seq: number, id }],
        recalled_at: Millis::new(number),
        received_at: Millis::now(),
        client: Client {
            ip: None,
            platform: operator_id.map(Cow::Borrowed),
        },
    };
    let event = recalled.event();
    let envelope = Envelope::parse(&event.bytes).expect("our own event has an envelope");
    assert_eq!(envelope.id, event.id.to_string());
    assert_eq!(envelope.source, format!("/tencent-im/{number}"));
    assert_eq!(envelope.subject.as_deref(), Some(group_id));
    let key = topic_id.unwrap_or(group_id);
    assert_eq!(envelope.partitionkey, format!("{number}:{key}"));
    assert_eq!(envelope.data.sdk_app_id, number);
    let conversation = envelope.data.conversation.expect("it has one");
    assert_eq!(conversation.kind, "group");
    assert_eq!(conversation.group_type.as_deref(), group_type);

    let value: Value = serde_json::from_slice(&event.bytes).expect("our own event is JSON");
    let data = &value["data"];
    assert_eq!(data["operator_id"].as_str(), operator_id);
    assert_eq!(data["client"]["platform"].as_str(), operator_id);
    assert_eq!(data["messages"][0]["seq"], number);
    assert_eq!(data["messages"][0]["id"].as_str(), id);
    assert_eq!(
        data["recalled_at"].is_null(),
        recalled.recalled_at.is_none()
    );
}

fn first_eight(bytes: &[u8]) -> [u8; 8] {
    let mut number = [0; 8];
    let length = bytes.len().min(8);
    number[..length].copy_from_slice(&bytes[..length]);
    number
}
