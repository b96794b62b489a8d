//! Writes any text into the text fields of a group's event, and reads it back from the body and from the envelope.
#![no_main]

use std::borrow::Cow;

use libfuzzer_sys::fuzz_target;
use recall_relay::event::{Client, Conversation, Recalled, RecalledMessage, UnixMillis};
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
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
        messages: vec![RecalledMessage::Group { seq: number, id }],
        recalled_at: UnixMillis::new(number),
        received_at: UnixMillis::now(),
        client: Client {
            ip: None,
            platform: operator_id.map(Cow::Borrowed),
        },
    };
    let event = recalled.event();
    let value: Value = serde_json::from_slice(&event.body).expect("the event is not JSON");
    assert_eq!(value["id"], event.id.to_string());
    assert_eq!(value["source"], format!("/tencent-im/{number}"));
    assert_eq!(event.subject.as_deref(), Some(group_id));
    assert_eq!(value["subject"], group_id);
    let key = topic_id.unwrap_or(group_id);
    assert_eq!(*event.conversation, format!("{number}:{key}"));
    assert_eq!(value["partitionkey"], *event.conversation);
    assert_eq!(event.group_type.as_deref(), group_type);
    assert_eq!(
        value["data"]["conversation"]["group_type"].as_str(),
        group_type
    );
    assert_eq!(value["time"], event.time.to_string());
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
