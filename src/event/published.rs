//! An event as subscribers read it: parsed from its published bytes.

use serde::Deserialize;

use super::Kind;

/// The parts of a published event that people look at. Any field of `data` may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedEvent {
    /// What the event is about.
    pub kind: Kind,
    /// The CloudEvents `time`, as it was published.
    pub time: String,
    /// The CloudEvents `partitionkey`.
    pub partition_key: String,
    /// The CloudEvents `subject`, if there is one.
    pub subject: Option<String>,
    /// Parts of the CloudEvents `data`.
    pub data: PublishedData,
}

/// Parts of an event's `data`. What it does not contain is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PublishedData {
    /// The conversation.
    pub conversation: PublishedConversation,
    /// Who recalled the messages.
    pub operator_id: Option<String>,
    /// The recalled messages.
    pub messages: Vec<PublishedMessage>,
    /// When the callback was received.
    pub received_at: Option<String>,
    /// Why the callback was rejected, as one word.
    pub reason: Option<String>,
    /// Why the callback was rejected, for people.
    pub detail: Option<String>,
}

/// The ids of a conversation; which of them are there depends on its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PublishedConversation {
    /// The vendor's `GroupId`.
    pub group_id: Option<String>,
    /// The vendor's `TopicId`.
    pub topic_id: Option<String>,
    /// The sender of a one-to-one message.
    pub from_account: Option<String>,
    /// The receiver of a one-to-one message.
    pub to_account: Option<String>,
    /// The official account.
    pub official_account: Option<String>,
}

/// A recalled message. A message of a group has a `seq`; any other one has a `key`, and perhaps a `seq`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PublishedMessage {
    /// The vendor's `MsgSeq`.
    pub seq: Option<u64>,
    /// The vendor's `MsgId`.
    pub id: Option<String>,
    /// The vendor's `MsgKey`.
    pub key: Option<String>,
}

impl PublishedMessage {
    /// The vendor's `MsgKey`, or `MsgSeq` in a group; `None` if it has neither.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let seq = || self.seq.map(|seq| seq.to_string());
        self.key.clone().or_else(seq)
    }
}

impl PublishedData {
    /// Reads the `data` of an event's body; all is empty if it is not an event.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Body {
            data: PublishedData,
        }

        let body: Body = serde_json::from_slice(body).unwrap_or_default();
        body.data
    }
}

#[derive(Deserialize)]
struct Envelope {
    r#type: String,
    time: String,
    partitionkey: String,
    subject: Option<String>,
    data: PublishedData,
}

impl PublishedEvent {
    /// Parses an event's published bytes.
    ///
    /// # Errors
    /// Says why they are not an event of the relay.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let envelope: Envelope =
            serde_json::from_slice(bytes).map_err(|error| format!("not an event: {error}"))?;
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.event_type() == envelope.r#type)
            .ok_or_else(|| format!("an event of the unknown type {}", envelope.r#type))?;
        Ok(Self {
            kind,
            time: envelope.time,
            partition_key: envelope.partitionkey,
            subject: envelope.subject,
            data: envelope.data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Client, Conversation, Recalled, RecalledMessage, Rejected, UnixMillis};
    use super::*;

    #[test]
    fn an_event_is_parsed_as_it_was_published() {
        let recalled = Recalled {
            sdk_app_id: 7,
            command: "C2C.CallbackAfterMsgWithDraw",
            conversation: Conversation::C2c {
                from_account: "a:b",
                to_account: "c",
            },
            operator_id: Some("admin"),
            messages: vec![RecalledMessage::Keyed {
                key: "1_2_3",
                parts: None,
            }],
            recalled_at: None,
            received_at: UnixMillis::new(1_670_574_414_201).unwrap(),
            client: Client::default(),
        };
        let event = recalled.event();
        let parsed = PublishedEvent::parse(&event.body).unwrap();
        assert_eq!(parsed.kind, Kind::C2c);
        assert_eq!(parsed.time, "2022-12-09T08:26:54.201Z");
        assert_eq!(parsed.partition_key, &*event.conversation);
        assert_eq!(parsed.subject.as_deref(), event.subject.as_deref());
        let PublishedData {
            conversation,
            operator_id,
            messages,
            ..
        } = parsed.data;
        assert_eq!(conversation.from_account.as_deref(), Some("a:b"));
        assert_eq!(conversation.to_account.as_deref(), Some("c"));
        assert_eq!(operator_id.as_deref(), Some("admin"));
        assert_eq!(messages[0].key.as_deref(), Some("1_2_3"));
        assert_eq!(messages[0].seq, None);
    }

    #[test]
    fn a_rejected_callback_has_no_conversation() {
        let rejected = Rejected {
            sdk_app_id: 7,
            reason: "not_json",
            detail: "body is not JSON",
            command: None,
            query: "SdkAppid=7",
            body: b"{",
            received_at: UnixMillis::new(0).unwrap(),
        };
        let parsed = PublishedEvent::parse(&rejected.event().body).unwrap();
        assert_eq!(parsed.kind, Kind::Rejected);
        let expected = PublishedData {
            received_at: Some("1970-01-01T00:00:00.000Z".to_owned()),
            reason: Some("not_json".to_owned()),
            detail: Some("body is not JSON".to_owned()),
            ..PublishedData::default()
        };
        assert_eq!(parsed.data, expected);
    }

    #[test]
    fn what_is_no_event_of_the_relay_is_an_error() {
        for (bytes, problem) in [
            ("", "not an event"),
            ("hello", "not an event"),
            ("{}", "missing field `type`"),
            (
                r#"{"type":"x","time":"t","partitionkey":"k","data":{}}"#,
                "the unknown type x",
            ),
            (
                r#"{"type":"x","time":"t","partitionkey":"k"}"#,
                "missing field `data`",
            ),
        ] {
            let error = PublishedEvent::parse(bytes.as_bytes()).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
