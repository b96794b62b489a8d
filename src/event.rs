//! The event: what is published for a callback, its id, and its bytes.
//!
//! An event is CloudEvents 1.0 in structured mode. Its bytes are made once, when the callback
//! arrives, and are the same in the spool and on every broker. Its id is a pure function of what the
//! vendor said: a repeated callback, a restart and a replay all give the same id.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};
use uuid::{Uuid, uuid};

mod time;
pub use time::Millis;

/// The `content-type` of every event.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";

/// `UUIDv5` of the URL namespace and `urn:recall-relay:event`.
const NAMESPACE: Uuid = uuid!("afda6519-29bd-5e88-a7b3-75bca6e68e98");

/// An event's number in the spool: given out once, in order, never again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

impl Seq {
    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether an event tells of a recall or of a callback that could not be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message was recalled.
    Recalled,
    /// An authentic callback was set aside: a dead letter from the start.
    Rejected,
}

/// An event, ready to be stored and published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What it tells.
    pub kind: Kind,
    /// The CloudEvents `id`.
    pub id: Uuid,
    /// The whole event as JSON: what is published.
    pub bytes: Bytes,
}

impl Event {
    /// What tells it from others.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint {
            id: self.id,
            checksum: crc32fast::hash(&self.bytes),
        }
    }
}

/// What tells an event from any other that was given the same number in another history of its spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The event's id.
    pub id: Uuid,
    /// CRC-32 of its bytes, which tell when the callback was received: a repeated callback has the same id.
    pub checksum: u32,
}

/// An event and its number in the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its number.
    pub seq: Seq,
    /// The event.
    pub event: Event,
}

/// What a recall callback said, checked: everything that the event tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recalled<'a> {
    /// The application.
    pub sdk_app_id: u64,
    /// The vendor's `CallbackCommand`; it counts for the id.
    pub command: &'a str,
    /// Where the messages were.
    pub conversation: Conversation<'a>,
    /// Who recalled them.
    pub operator_id: Option<&'a str>,
    /// Which messages, in the order received; never empty.
    pub messages: Vec<Message<'a>>,
    /// When they were recalled (the vendor's `EventTime`).
    pub recalled_at: Option<Millis>,
    /// When the callback arrived.
    pub received_at: Millis,
    /// Where the recall came from.
    pub client: Client<'a>,
}

/// Where the recalled messages were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Conversation<'a> {
    /// A group, or a topic of a community.
    Group {
        /// The vendor's `GroupId`.
        group_id: &'a str,
        /// The vendor's `Type`: an open set of names.
        #[serde(skip_serializing_if = "Option::is_none")]
        group_type: Option<&'a str>,
        /// The vendor's `TopicId`.
        #[serde(skip_serializing_if = "Option::is_none")]
        topic_id: Option<&'a str>,
    },
    /// One-to-one.
    C2c {
        /// The sender of the message.
        from_account: &'a str,
        /// Its receiver.
        to_account: &'a str,
    },
    /// The broadcast of an official account.
    OfficialAccount {
        /// The account.
        official_account: &'a str,
    },
}

/// One recalled message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Message<'a> {
    /// Of a group.
    Group {
        /// Counts per group and, in communities, per topic.
        seq: u64,
        /// Unique for ever; not told by older versions of the callback.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
    },
    /// Of any other conversation.
    Keyed {
        /// The vendor's `MsgKey`.
        key: &'a str,
        /// What the key says, where it is `<seq>_<random>_<unix seconds>`.
        #[serde(flatten)]
        parts: Option<KeyParts>,
    },
}

/// What a `MsgKey` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyParts {
    /// The message's sequence number.
    pub seq: u64,
    /// The message's random number.
    pub random: u64,
    /// When it was sent.
    pub sent_at: Millis,
}

/// Where the recall came from, as far as the vendor told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Client<'a> {
    /// The end user's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<Cow<'a, str>>,
    /// `RESTAPI`, `Web`, `Android`, …: an open set of names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Cow<'a, str>>,
}

impl Client<'_> {
    fn is_unknown(&self) -> bool {
        self.ip.is_none() && self.platform.is_none()
    }
}

/// An authentic callback that could not be understood, kept whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected<'a> {
    /// The application.
    pub sdk_app_id: u64,
    /// What was wrong, as one word.
    pub reason: &'a str,
    /// What was wrong and where, for people.
    pub detail: &'a str,
    /// The command, as far as it was told.
    pub command: Option<&'a str>,
    /// The query without `Sign` and `RequestTime`.
    pub query: &'a str,
    /// The body as it came.
    pub body: &'a [u8],
    /// When the callback arrived.
    pub received_at: Millis,
}

impl Recalled<'_> {
    /// Makes the event.
    #[must_use]
    pub fn event(&self) -> Event {
        let id = self.id();
        let subject = self.conversation.subject();
        let partition_key = match self.conversation {
            Conversation::Group {
                topic_id: Some(topic),
                ..
            } => format!("{}:{topic}", self.sdk_app_id),
            _ => format!("{}:{subject}", self.sdk_app_id),
        };
        let body = CloudEvent {
            specversion: "1.0",
            id,
            source: format_args!("/tencent-im/{}", self.sdk_app_id),
            r#type: match self.conversation {
                Conversation::Group { .. } => "com.tencent.im.group.message.recalled",
                Conversation::C2c { .. } => "com.tencent.im.c2c.message.recalled",
                Conversation::OfficialAccount { .. } => {
                    "com.tencent.im.official_account.message.recalled"
                }
            },
            subject: Some(&subject),
            time: self.recalled_at.unwrap_or(self.received_at),
            datacontenttype: "application/json",
            dataschema: "urn:recall-relay:schema:message-recalled:1",
            partitionkey: &partition_key,
            data: RecalledData {
                sdk_app_id: self.sdk_app_id,
                conversation: self.conversation,
                operator_id: self.operator_id,
                messages: &self.messages,
                recalled_at: self.recalled_at,
                received_at: self.received_at,
                client: &self.client,
            },
        };
        Event {
            kind: Kind::Recalled,
            id,
            bytes: to_json(&body),
        }
    }

    /// `UUIDv5` of `[app, command, conversation ids, messages, EventTime]`.
    ///
    /// `EventTime` counts only where a group message has no id of its own: a group that was destroyed
    /// and created again counts its messages from 1 again.
    fn id(&self) -> Uuid {
        let mut unidentified = false;
        let messages: Vec<MessageId<'_>> = self
            .messages
            .iter()
            .map(|message| match message {
                Message::Group { seq, id } => {
                    unidentified |= id.is_none();
                    MessageId::Group(*seq, *id)
                }
                Message::Keyed { key, .. } => MessageId::Key(key),
            })
            .collect();
        let conversation = match &self.conversation {
            Conversation::Group {
                group_id, topic_id, ..
            } => vec![*group_id, topic_id.unwrap_or_default()],
            Conversation::C2c {
                from_account,
                to_account,
            } => vec![*from_account, *to_account],
            Conversation::OfficialAccount { official_account } => vec![*official_account],
        };
        let event_time = self.recalled_at.filter(|_| unidentified).map(|time| time.0);
        name_to_id(&(
            self.sdk_app_id,
            self.command,
            conversation,
            messages,
            event_time,
        ))
    }
}

impl Conversation<'_> {
    fn subject(&self) -> Cow<'_, str> {
        match self {
            Self::Group { group_id, .. } => Cow::Borrowed(group_id),
            Self::C2c {
                from_account,
                to_account,
            } => Cow::Owned(format!("{from_account}:{to_account}")),
            Self::OfficialAccount { official_account } => Cow::Borrowed(official_account),
        }
    }
}

impl Rejected<'_> {
    /// Makes the event.
    #[must_use]
    pub fn event(&self) -> Event {
        let (body, body_base64) = match std::str::from_utf8(self.body) {
            Ok(text) => (Some(text), None),
            Err(_) => (None, Some(BASE64_STANDARD.encode(self.body))),
        };
        let id = name_to_id(&(self.sdk_app_id, self.query, body.or(body_base64.as_deref())));
        let event = CloudEvent {
            specversion: "1.0",
            id,
            source: format_args!("/tencent-im/{}", self.sdk_app_id),
            r#type: "com.tencent.im.callback.rejected",
            subject: None,
            time: self.received_at,
            datacontenttype: "application/json",
            dataschema: "urn:recall-relay:schema:callback-rejected:1",
            partitionkey: &self.sdk_app_id.to_string(),
            data: RejectedData {
                sdk_app_id: self.sdk_app_id,
                reason: self.reason,
                detail: self.detail,
                command: self.command,
                query: self.query,
                body,
                body_base64,
                received_at: self.received_at,
            },
        };
        Event {
            kind: Kind::Rejected,
            id,
            bytes: to_json(&event),
        }
    }
}

/// The attributes in the order in which they are published.
#[derive(Serialize)]
struct CloudEvent<'a, D> {
    specversion: &'a str,
    id: Uuid,
    source: fmt::Arguments<'a>,
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    time: Millis,
    datacontenttype: &'a str,
    dataschema: &'a str,
    partitionkey: &'a str,
    data: D,
}

#[derive(Serialize)]
struct RecalledData<'a> {
    sdk_app_id: u64,
    conversation: Conversation<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator_id: Option<&'a str>,
    messages: &'a [Message<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    recalled_at: Option<Millis>,
    received_at: Millis,
    #[serde(skip_serializing_if = "Client::is_unknown")]
    client: &'a Client<'a>,
}

#[derive(Serialize)]
struct RejectedData<'a> {
    sdk_app_id: u64,
    reason: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
    query: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    received_at: Millis,
}

#[derive(Serialize)]
#[serde(untagged)]
enum MessageId<'a> {
    Group(u64, Option<&'a str>),
    Key(&'a str),
}

/// Bytes of an event about one message, and some.
const USUAL_BYTES: usize = 768;

fn name_to_id(name: &impl Serialize) -> Uuid {
    // As `Uuid::new_v5` does, which has a SHA-1 without the processor's instructions for it.
    let hash = Sha1::new()
        .chain_update(NAMESPACE)
        .chain_update(to_json(name))
        .finalize();
    let [first @ .., _, _, _, _] = <[u8; 20]>::from(hash);
    uuid::Builder::from_sha1_bytes(first).into_uuid()
}

#[expect(
    clippy::expect_used,
    reason = "strings, numbers and structs of them always have a JSON form"
)]
fn to_json(value: &impl Serialize) -> Bytes {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    serde_json::to_writer(&mut bytes, value).expect("an event has a JSON form");
    bytes.into()
}

/// The attributes of an event that brokers carry beside its bytes, read back from the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Envelope<'a> {
    /// UUID as text.
    pub id: &'a str,
    /// `/tencent-im/<app>`.
    pub source: &'a str,
    /// `com.tencent.im.…`.
    pub r#type: &'a str,
    /// What the event is about: a group, an account, or two.
    #[serde(borrow)]
    pub subject: Option<Cow<'a, str>>,
    /// RFC 3339, UTC, three decimals.
    pub time: &'a str,
    /// Events with the same key are published in order.
    #[serde(borrow)]
    pub partitionkey: Cow<'a, str>,
    /// What routing needs to know of the data.
    #[serde(borrow)]
    pub data: EnvelopeData<'a>,
}

/// The part of an event's data that routing looks at.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EnvelopeData<'a> {
    /// The application.
    pub sdk_app_id: u64,
    /// Absent from a rejected callback.
    #[serde(borrow)]
    pub conversation: Option<EnvelopeConversation<'a>>,
}

/// The part of a conversation that routing looks at.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EnvelopeConversation<'a> {
    /// `group`, `c2c` or `official_account`.
    pub kind: &'a str,
    /// Of a group.
    #[serde(borrow)]
    pub group_type: Option<Cow<'a, str>>,
}

impl<'a> Envelope<'a> {
    /// Reads the attributes of an event's bytes.
    ///
    /// # Errors
    /// Fails where the bytes are not an event of ours.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests;
