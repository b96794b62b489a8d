//! Handles any query and body as a callback. The first line of the input is the query, the rest is the body.
//!
//! A parsed recall becomes an event whose JSON and envelope agree with the callback, and whose id depends only on the
//! identity of the recall. A recall that cannot be parsed is kept unchanged.
#![no_main]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use libfuzzer_sys::fuzz_target;
use recall_relay::callback::{
    Body, Class, Object, ParseError, ParsedRecall, Query, Recall, Value as Field, classify,
    parse_recall,
};
use recall_relay::event::{Event, Kind, Rejected, UnixMillis};
use serde_json::Value;

const APP: u64 = 1_400_000_001;

fuzz_target!(|input: &[u8]| {
    let end = input.iter().position(|byte| *byte == b'\n');
    let (line, body) = input.split_at(end.map_or(input.len(), |end| end + 1));
    let line = String::from_utf8_lossy(line);
    let raw = line.trim_end_matches('\n');
    let query = Query::parse(raw);
    match classify(&query, body) {
        Class::Recall {
            recall,
            body: parsed,
        } => match parse_recall(APP, recall, &query, &parsed, time(201)) {
            Ok(accepted) => check_event(recall, &query, body, &parsed, &accepted),
            Err(error) => check_rejected(&query, body, &error),
        },
        Class::Probe => {
            assert!(query.command().is_some_and(is_recall));
            if let Some(object) = str::from_utf8(body).ok().and_then(Object::parse) {
                assert!(object.get("GroupId").is_none() && object.get("MsgKey").is_none());
            } else {
                assert!(body.trim_ascii().is_empty());
            }
        }
        Class::Other { command } => {
            assert!(command.is_none_or(|command| !is_recall(&command)));
            if let Ok(Value::Object(object)) = serde_json::from_slice(body) {
                let named = object.get("CallbackCommand").and_then(Value::as_str);
                assert!(
                    !named.is_some_and(is_recall),
                    "a recall was classified as another command"
                );
            }
        }
    }
});

fn time(millis: u64) -> UnixMillis {
    UnixMillis::new(1_670_574_414_000 + millis).expect("the time is out of range")
}

fn is_recall(command: &str) -> bool {
    [
        "Group.CallbackAfterRecallMsg",
        "C2C.CallbackAfterMsgWithDraw",
        "OfficialAccount.CallbackAfterMsgWithDraw",
    ]
    .contains(&command)
}

fn check_event(
    recall: Recall,
    query: &Query<'_>,
    bytes: &[u8],
    body: &Body<'_>,
    parsed: &ParsedRecall,
) {
    let Body::Object(object) = body else {
        panic!("parsed without an object: {body:?}");
    };
    let event = &parsed.event;
    let value = check_envelope(
        event,
        match recall {
            Recall::Group => Kind::Group,
            Recall::C2c => Kind::C2c,
            Recall::OfficialAccount => Kind::OfficialAccount,
        },
    );
    let text = |name: &str| {
        let text = object.get(name).and_then(Field::as_text);
        text.expect("the identity is not a string")
    };
    let length = |name: &str| {
        let list = object.get(name).and_then(Field::as_objects);
        list.map_or(0, |list| list.len())
    };
    let (kind, subject, key) = match recall {
        Recall::Group => {
            let group = text("GroupId").to_owned();
            let topic = object.get("TopicId").and_then(Field::as_text);
            let key = topic.filter(|topic| !topic.is_empty()).unwrap_or(&group);
            let key = format!("{APP}:{key}");
            ("group", group, key)
        }
        Recall::C2c => {
            let escaped = |name| text(name).replace('%', "%25").replace(':', "%3A");
            let both = format!("{}:{}", escaped("From_Account"), escaped("To_Account"));
            let key = format!("{APP}:{both}");
            ("c2c", both, key)
        }
        Recall::OfficialAccount => {
            let account = text("Official_Account").to_owned();
            let key = format!("{APP}:{account}");
            ("official_account", account, key)
        }
    };
    assert_eq!(
        value["type"],
        format!("com.tencent.im.{kind}.message.recalled")
    );
    assert_eq!(value["subject"], subject);
    assert_eq!(value["partitionkey"], key);
    assert_eq!(value["data"]["conversation"]["kind"], kind);
    let messages = match recall {
        Recall::Group => length("MsgSeqList"),
        Recall::C2c => 1,
        Recall::OfficialAccount => length("WithdrawMsgList"),
    };
    let reported = value["data"]["messages"].as_array().expect("not a list");
    assert!(messages > 0);
    assert_eq!(reported.len(), messages);
    for (index, ignored) in parsed.ignored_fields.iter().enumerate() {
        assert!(
            !parsed.ignored_fields[..index].contains(ignored),
            "a field is reported twice"
        );
    }

    // The id does not depend on fields that are not part of the identity.
    let other_fields =
        r#""Type":"Another","Operator_Account":1e400,"UnreadMsgNum":7,"UnknownField":{"GroupId":"of"}"#;
    // A group message has an `id`, any other message a `key`.
    let all_have_ids = reported
        .iter()
        .all(|message| message.get("id").or(message.get("key")).is_some());
    let event_time = if all_have_ids {
        r#","EventTime":"1670574414999""#
    } else {
        ""
    };
    let changed = with_fields(bytes, &format!("{other_fields}{event_time}"));
    let mut other_query = query.clone();
    other_query.client_ip = Some("203.0.113.9".into());
    other_query.platform = None;
    let reparsed = reparse(recall, &other_query, &changed, 999);
    assert_eq!(reparsed.event.id, event.id, "from {changed:?}");

    // An unknown field changes nothing, whatever its value.
    let more = with_fields(bytes, r#""UnknownField":[1e400,"\ud800"]"#);
    assert_eq!(&reparse(recall, query, &more, 201), parsed);
}

/// The object with more fields. The last field of a name counts.
fn with_fields(object: &[u8], fields: &str) -> Vec<u8> {
    let mut bytes = object.trim_ascii_end().to_vec();
    assert_eq!(bytes.pop(), Some(b'}'));
    bytes.extend(format!(",{fields}}}").bytes());
    bytes
}

/// Parses the same recall from another body.
fn reparse(recall: Recall, query: &Query<'_>, bytes: &[u8], now: u64) -> ParsedRecall {
    match classify(query, bytes) {
        Class::Recall { recall: same, body } => {
            assert_eq!(same, recall);
            parse_recall(APP, recall, query, &body, time(now))
                .expect("the recall cannot be parsed again")
        }
        class => panic!("not a recall: {class:?}"),
    }
}

fn check_rejected(query: &Query<'_>, body: &[u8], error: &ParseError) {
    let (kept, detail) = (query.without_signature(), error.to_string());
    let rejected = |received_at| Rejected {
        sdk_app_id: APP,
        reason: error.reason(),
        detail: &detail,
        command: query.command(),
        query: &kept,
        body,
        received_at,
    };
    let event = rejected(time(201)).event();
    let value = check_envelope(&event, Kind::Rejected);
    assert_eq!(value["type"], "com.tencent.im.callback.rejected");
    assert_eq!(value["data"]["query"], kept);
    let data = &value["data"];
    let reported = match (data["body"].as_str(), data["body_base64"].as_str()) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(base64)) => BASE64_STANDARD.decode(base64).expect("valid base64"),
        both => panic!("not exactly one form of the body: {both:?}"),
    };
    assert_eq!(reported, body);
    assert_eq!(rejected(time(999)).event().id, event.id);
}

/// Checks what holds for every event; returns the event as JSON.
fn check_envelope(event: &Event, kind: Kind) -> Value {
    assert_eq!(event.kind, kind);
    assert_eq!(event.id.get_version_num(), 5);
    let value: Value = serde_json::from_slice(&event.body).expect("the event is not JSON");
    assert_eq!(value["id"], event.id.to_string());
    assert_eq!(value["specversion"], "1.0");
    assert_eq!(value["source"], format!("/tencent-im/{APP}"));
    assert_eq!(
        value["source"],
        format!("/tencent-im/{}", event.sdk_app_id())
    );
    assert_eq!(value["type"], kind.event_type());
    assert_eq!(value["subject"].as_str(), event.subject.as_deref());
    let time = value["time"].as_str().expect("no time");
    assert_eq!(time, event.time.to_string());
    assert_eq!(time.len(), "2022-12-09T08:26:54.123Z".len());
    assert_eq!(value["partitionkey"], *event.conversation);
    let conversation = &value["data"]["conversation"];
    assert_eq!(conversation.is_object(), kind != Kind::Rejected);
    assert_eq!(
        conversation["group_type"].as_str(),
        event.group_type.as_deref()
    );
    value
}
