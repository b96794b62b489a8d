use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::id::{NAMESPACE, name_to_id};
use super::*;

const MSG_ID: &str = "144115213033478435-1739361321-2512805311";
const TOPIC: &str = "@TGS#_@TGS#cQVLVHIM62CJ@TOPIC#_TestTopic";

fn group<'a>(topic_id: Option<&'a str>, messages: Vec<RecalledMessage<'a>>) -> Recalled<'a> {
    Recalled {
        sdk_app_id: 1_400_000_001,
        command: "Group.CallbackAfterRecallMsg",
        conversation: Conversation::Group {
            group_id: "1213456",
            group_type: Some("Public"),
            topic_id,
        },
        operator_id: Some("admin"),
        messages,
        recalled_at: UnixMillis::new(1_670_574_414_123),
        received_at: UnixMillis(1_670_574_414_201),
        client: Client::default(),
    }
}

fn c2c() -> Recalled<'static> {
    Recalled {
        command: "C2C.CallbackAfterMsgWithDraw",
        conversation: Conversation::C2c {
            from_account: "jared",
            to_account: "Jonh",
        },
        operator_id: None,
        recalled_at: None,
        ..group(
            None,
            vec![RecalledMessage::Keyed {
                key: "48374_2837546_1557481126",
                parts: Some(KeyParts {
                    seq: 48374,
                    random: 2_837_546,
                    sent_at: UnixMillis(1_557_481_126_000),
                }),
            }],
        )
    }
}

fn text(event: &Event) -> &str {
    std::str::from_utf8(&event.body).unwrap()
}

#[test]
fn the_namespace_is_derived_as_documented() {
    assert_eq!(
        NAMESPACE,
        Uuid::new_v5(&Uuid::NAMESPACE_URL, b"urn:recall-relay:event")
    );
}

#[test]
fn ids_match_the_published_vectors() {
    let with_id = RecalledMessage::Group {
        seq: 130,
        id: Some(MSG_ID),
    };
    let without = RecalledMessage::Group { seq: 130, id: None };
    let ids = [
        group(Some(TOPIC), vec![with_id]).event().id,
        group(None, vec![without]).event().id,
        c2c().event().id,
    ];
    assert_eq!(
        ids.map(|id| id.to_string()),
        [
            "e623ed2b-c5ef-5b1b-a59b-1584672e69fa",
            "aacf2bd3-411e-5ba1-b0b6-d2359899ca8f",
            "4e907382-d3ee-5669-aa1b-045dfbf4084a",
        ]
    );
}

#[test]
fn the_id_ignores_optional_fields() {
    let one = group(
        None,
        vec![RecalledMessage::Group {
            seq: 130,
            id: Some(MSG_ID),
        }],
    );
    let other = Recalled {
        conversation: Conversation::Group {
            group_id: "1213456",
            group_type: None,
            topic_id: None,
        },
        operator_id: Some("someone else"),
        recalled_at: UnixMillis::new(1),
        received_at: UnixMillis(2),
        client: Client {
            ip: Some("127.0.0.1".into()),
            platform: None,
        },
        ..one.clone()
    };
    assert_eq!(one.event().id, other.event().id);
}

#[test]
fn a_group_event_has_these_exact_bytes() {
    let mut recalled = group(
        Some(TOPIC),
        vec![RecalledMessage::Group {
            seq: 130,
            id: Some(MSG_ID),
        }],
    );
    recalled.client = Client {
        ip: Some("127.0.0.1".into()),
        platform: Some("RESTAPI".into()),
    };
    assert_eq!(
        text(&recalled.event()),
        concat!(
            r#"{"specversion":"1.0","id":"e623ed2b-c5ef-5b1b-a59b-1584672e69fa","#,
            r#""source":"/tencent-im/1400000001","type":"com.tencent.im.group.message.recalled","#,
            r#""subject":"1213456","time":"2022-12-09T08:26:54.123Z","#,
            r#""datacontenttype":"application/json","#,
            r#""dataschema":"urn:recall-relay:schema:message-recalled:1","#,
            r#""partitionkey":"1400000001:@TGS#_@TGS#cQVLVHIM62CJ@TOPIC#_TestTopic","#,
            r#""data":{"sdk_app_id":1400000001,"conversation":{"kind":"group","#,
            r#""group_id":"1213456","group_type":"Public","#,
            r#""topic_id":"@TGS#_@TGS#cQVLVHIM62CJ@TOPIC#_TestTopic"},"operator_id":"admin","#,
            r#""messages":[{"seq":130,"id":"144115213033478435-1739361321-2512805311"}],"#,
            r#""recalled_at":"2022-12-09T08:26:54.123Z","received_at":"2022-12-09T08:26:54.201Z","#,
            r#""client":{"ip":"127.0.0.1","platform":"RESTAPI"}}}"#,
        )
    );
}

#[test]
fn a_c2c_event_has_these_exact_bytes() {
    assert_eq!(
        text(&c2c().event()),
        concat!(
            r#"{"specversion":"1.0","id":"4e907382-d3ee-5669-aa1b-045dfbf4084a","#,
            r#""source":"/tencent-im/1400000001","type":"com.tencent.im.c2c.message.recalled","#,
            r#""subject":"jared:Jonh","time":"2022-12-09T08:26:54.201Z","#,
            r#""datacontenttype":"application/json","#,
            r#""dataschema":"urn:recall-relay:schema:message-recalled:1","#,
            r#""partitionkey":"1400000001:jared:Jonh","#,
            r#""data":{"sdk_app_id":1400000001,"conversation":{"kind":"c2c","#,
            r#""from_account":"jared","to_account":"Jonh"},"#,
            r#""messages":[{"key":"48374_2837546_1557481126","seq":48374,"random":2837546,"#,
            r#""sent_at":"2019-05-10T09:38:46.000Z"}],"#,
            r#""received_at":"2022-12-09T08:26:54.201Z"}}"#,
        )
    );
}

#[test]
fn a_rejected_callback_keeps_text_and_binary_bodies() {
    let rejected = Rejected {
        sdk_app_id: 7,
        reason: "not_json",
        detail: "body is not JSON",
        command: None,
        query: "SdkAppid=7",
        body: b"{\"a\":",
        received_at: UnixMillis(0),
    };
    let event = rejected.event();
    assert_eq!(event.kind, Kind::Rejected);
    assert!(text(&event).contains(r#""query":"SdkAppid=7","body":"{\"a\":","#));

    let binary = Rejected {
        body: b"\xff\x00",
        ..rejected
    };
    assert!(text(&binary.event()).contains(r#""body_base64":"/wA=","#));
    assert_ne!(binary.event().id, event.id);
}

/// JSON escapes make a control character six times as long.
#[test]
fn a_rejected_body_is_base64_if_that_is_shorter() {
    fn rejected(body: &[u8]) -> Rejected<'_> {
        Rejected {
            sdk_app_id: 7,
            reason: "not_json",
            detail: "body is not JSON",
            command: None,
            query: "SdkAppid=7",
            body,
            received_at: UnixMillis(0),
        }
    }
    let largest = vec![1; 256 << 10];
    let event = rejected(&largest).event();
    assert!(text(&event).contains(r#""body_base64":"AQEB"#));
    assert!(event.body.len() < 400 << 10, "{}", event.body.len());
    for (body, expected) in [
        ("abc", r#""body":"abc""#),
        ("\"\"\"", r#""body_base64":"IiIi""#),
        ("a\"b", r#""body":"a\"b""#),
        ("", r#""body":"""#),
    ] {
        let event = rejected(body.as_bytes()).event();
        assert!(text(&event).contains(expected), "{}", text(&event));
    }
    // The id does not depend on the encoding: it is derived from the text.
    let id = name_to_id(&(7, "SdkAppid=7", "\"\"\""));
    assert_eq!(rejected(b"\"\"\"").event().id, id);
}

#[test]
fn event_fields_agree_with_the_body() {
    let message = || vec![RecalledMessage::Group { seq: 1, id: None }];
    let plain = group(None, message()).event();
    let topic = group(Some(TOPIC), message()).event();
    let rejected = Rejected {
        sdk_app_id: 7,
        reason: "",
        detail: "",
        command: None,
        query: "",
        body: b"",
        received_at: UnixMillis(5),
    };
    for (event, app, subject, group_type) in [
        (plain, "1400000001", Some("1213456"), Some("Public")),
        (topic, "1400000001", Some("1213456"), Some("Public")),
        (c2c().event(), "1400000001", Some("jared:Jonh"), None),
        (rejected.event(), "7", None, None),
    ] {
        let body: serde_json::Value = serde_json::from_slice(&event.body).unwrap();
        assert_eq!(body["id"], event.id.to_string());
        assert_eq!(body["type"], event.kind.event_type());
        assert_eq!(body["partitionkey"], *event.conversation);
        assert_eq!(body["time"], event.time.to_string());
        assert_eq!(body["source"], format!("/tencent-im/{app}"));
        assert_eq!(event.sdk_app_id(), app);
        assert_eq!(
            (body["subject"].as_str(), event.subject.as_deref()),
            (subject, subject)
        );
        assert_eq!(event.group_type.as_deref(), group_type);
    }
}

/// The event of a one-to-one conversation.
fn between<'a>(from_account: &'a str, to_account: &'a str) -> Event {
    let recalled = Recalled {
        conversation: Conversation::C2c {
            from_account,
            to_account,
        },
        ..c2c()
    };
    recalled.event()
}

#[test]
fn the_accounts_of_a_one_to_one_key_are_escaped() {
    for (from, to, subject) in [
        ("jared", "Jonh", "jared:Jonh"),
        ("a:b", "c", "a%3Ab:c"),
        ("a", "b:c", "a:b%3Ac"),
        ("a%3Ab", "100%", "a%253Ab:100%25"),
        ("::", "%%", "%3A%3A:%25%25"),
        ("@é/ b", "%3a", "@é/ b:%253a"),
    ] {
        let event = between(from, to);
        let body: serde_json::Value = serde_json::from_slice(&event.body).unwrap();
        let key = format!("1400000001:{subject}");
        assert_eq!(event.subject.as_deref(), Some(subject));
        assert_eq!(*event.conversation, key);
        assert_eq!(
            (&body["subject"], &body["partitionkey"]),
            (&subject.into(), &key.into())
        );
        assert_eq!(event.sdk_app_id(), "1400000001");
        // Only the key is escaped.
        let conversation = &body["data"]["conversation"];
        assert_eq!(conversation["from_account"], from);
        assert_eq!(conversation["to_account"], to);
        assert_eq!(event.id, id_between(from, to));
    }
}

fn id_between(from: &str, to: &str) -> Uuid {
    name_to_id(&(
        1_400_000_001,
        "C2C.CallbackAfterMsgWithDraw",
        [from, to],
        ["48374_2837546_1557481126"],
        None::<i64>,
    ))
}

#[test]
fn names_of_other_conversations_are_not_escaped() {
    let name = "a%:b";
    let messages = || vec![RecalledMessage::Group { seq: 1, id: None }];
    let mut of_topic = group(Some(name), messages());
    let key = format!("1400000001:{name}");
    assert_eq!(*of_topic.event().conversation, key);
    for conversation in [
        Conversation::Group {
            group_id: name,
            group_type: None,
            topic_id: None,
        },
        Conversation::OfficialAccount {
            official_account: name,
        },
    ] {
        of_topic.conversation = conversation;
        let event = of_topic.event();
        assert_eq!(event.subject.as_deref(), Some(name));
        assert_eq!(*event.conversation, key);
    }
}

#[test]
fn two_pairs_of_accounts_never_share_a_key() {
    let parts = ["", "a", ":", "%", "%3A", "%25"];
    let accounts: BTreeSet<String> = parts
        .iter()
        .flat_map(|first| parts.map(|second| format!("{first}{second}")))
        .collect();
    let mut pairs = BTreeMap::new();
    for from in &accounts {
        for to in &accounts {
            let key = between(from, to).conversation;
            if let Some(other) = pairs.insert(key, (from, to)) {
                panic!("{:?} has the key of {other:?}", (from, to));
            }
        }
    }
    assert_eq!(pairs.len(), 31 * 31);
}

proptest! {
    /// A pair that can be read back from its key shares it with no other.
    #[test]
    fn a_key_contains_exactly_one_pair_of_accounts(from in "[a:%235AB\\PC]{0,12}", to in "[a:%235AB\\PC]{0,12}") {
        let event = between(&from, &to);
        let subject = event.conversation.strip_prefix("1400000001:").unwrap();
        prop_assert_eq!(Some(subject), event.subject.as_deref());
        let accounts: Vec<_> = subject
            .split(':')
            .map(|account| account.replace("%3A", ":").replace("%25", "%"))
            .collect();
        prop_assert_eq!(accounts, [from, to]);
    }
}

/// An event with this number as its id.
pub(crate) fn event(number: u128, body: impl Into<Bytes>) -> Event {
    Event {
        id: Uuid::from_u128(number),
        kind: Kind::Group,
        conversation: "1:group".into(),
        subject: Some("group".into()),
        group_type: None,
        time: UnixMillis(0),
        body: body.into(),
    }
}
