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
pub use time::UnixMillis;

/// The `content-type` of every event.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";

/// `UUIDv5` of the URL namespace and `urn:recall-relay:event`.
const NAMESPACE: Uuid = uuid!("afda6519-29bd-5e88-a7b3-75bca6e68e98");

/// An event's number in the spool. Numbers are given out in order; no two committed events have the same.
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

/// What an event tells about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Messages of a group were recalled.
    Group,
    /// A one-to-one message was recalled.
    C2c,
    /// Broadcasts of an official account were recalled.
    OfficialAccount,
    /// An authentic callback could not be understood: a dead letter from the start.
    Rejected,
}

impl Kind {
    /// The kind in one word, as in `conversation.kind` and in routing keys.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::C2c => "c2c",
            Self::OfficialAccount => "official_account",
            Self::Rejected => "rejected",
        }
    }

    /// The CloudEvents `type`.
    #[must_use]
    pub const fn event_type(self) -> &'static str {
        match self {
            Self::Group => "com.tencent.im.group.message.recalled",
            Self::C2c => "com.tencent.im.c2c.message.recalled",
            Self::OfficialAccount => "com.tencent.im.official_account.message.recalled",
            Self::Rejected => "com.tencent.im.callback.rejected",
        }
    }
}

/// An event, ready to be stored and published. What sinks need to know of the body stands beside it, so that
/// nobody parses it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The CloudEvents `id`.
    pub id: Uuid,
    /// What the event tells about.
    pub kind: Kind,
    /// `partitionkey`: `<app>:<conversation>`, or `<app>` alone if the callback was rejected. Events with the
    /// same key are published in order.
    pub conversation: Box<str>,
    /// The CloudEvents `subject`; none if the callback was rejected.
    pub subject: Option<Box<str>>,
    /// The vendor's `Type` of a group.
    pub group_type: Option<Box<str>>,
    /// The CloudEvents `time`.
    pub time: UnixMillis,
    /// The whole event as JSON, UTF-8: what is published.
    pub body: Bytes,
}

impl Event {
    /// The application, in decimal.
    #[must_use]
    pub fn sdk_app_id(&self) -> &str {
        let app = self.conversation.split(':').next();
        app.unwrap_or_default()
    }

    /// The CloudEvents `source`.
    #[must_use]
    pub fn source(&self) -> String {
        format!("/tencent-im/{}", self.sdk_app_id())
    }

    /// Identifies this event if its number was used for another event, as after the spool was restored from a backup.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint {
            id: self.id,
            checksum: crc32fast::hash(&self.body),
        }
    }
}

/// Identifies an event independently of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The event's id.
    pub id: Uuid,
    /// CRC-32 of the body. A repeated callback has the same id but another `received_at`, so its checksum differs.
    pub checksum: u32,
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
    pub messages: Vec<RecalledMessage<'a>>,
    /// When they were recalled (the vendor's `EventTime`).
    pub recalled_at: Option<UnixMillis>,
    /// When the callback arrived.
    pub received_at: UnixMillis,
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
pub enum RecalledMessage<'a> {
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
    pub sent_at: UnixMillis,
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
    pub received_at: UnixMillis,
}

impl Recalled<'_> {
    /// Makes the event.
    #[must_use]
    pub fn event(&self) -> Event {
        let id = self.id();
        let subject = self.conversation.subject();
        let (kind, group_type, topic_id) = match self.conversation {
            Conversation::Group {
                group_type,
                topic_id,
                ..
            } => (Kind::Group, group_type, topic_id),
            Conversation::C2c { .. } => (Kind::C2c, None, None),
            Conversation::OfficialAccount { .. } => (Kind::OfficialAccount, None, None),
        };
        let conversation = format!("{}:{}", self.sdk_app_id, topic_id.unwrap_or(&subject));
        let time = self.recalled_at.unwrap_or(self.received_at);
        let body = to_json(&CloudEvent {
            specversion: "1.0",
            id,
            source: format_args!("/tencent-im/{}", self.sdk_app_id),
            r#type: kind.event_type(),
            subject: Some(&subject),
            time,
            datacontenttype: "application/json",
            dataschema: "urn:recall-relay:schema:message-recalled:1",
            partitionkey: &conversation,
            data: RecalledData {
                sdk_app_id: self.sdk_app_id,
                conversation: self.conversation,
                operator_id: self.operator_id,
                messages: &self.messages,
                recalled_at: self.recalled_at,
                received_at: self.received_at,
                client: &self.client,
            },
        });
        Event {
            id,
            kind,
            conversation: conversation.into(),
            subject: Some(subject.into()),
            group_type: group_type.map(Into::into),
            time,
            body,
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
                RecalledMessage::Group { seq, id } => {
                    unidentified |= id.is_none();
                    MessageId::Group(*seq, *id)
                }
                RecalledMessage::Keyed { key, .. } => MessageId::Key(key),
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
    /// Makes the event. It carries the body as text or in base64, whichever is shorter: text of control
    /// characters grows six times as JSON, and then does not fit a Kafka message.
    #[must_use]
    pub fn event(&self) -> Event {
        let text = std::str::from_utf8(self.body).ok();
        let base64 = BASE64_STANDARD.encode(self.body);
        let id = name_to_id(&(self.sdk_app_id, self.query, text.unwrap_or(&base64)));
        let text = text.filter(|text| to_json(text).len() <= base64.len() + QUOTES);
        let conversation = self.sdk_app_id.to_string();
        let kind = Kind::Rejected;
        let body = to_json(&CloudEvent {
            specversion: "1.0",
            id,
            source: format_args!("/tencent-im/{}", self.sdk_app_id),
            r#type: kind.event_type(),
            subject: None,
            time: self.received_at,
            datacontenttype: "application/json",
            dataschema: "urn:recall-relay:schema:callback-rejected:1",
            partitionkey: &conversation,
            data: RejectedData {
                sdk_app_id: self.sdk_app_id,
                reason: self.reason,
                detail: self.detail,
                command: self.command,
                query: self.query,
                body: text,
                body_base64: text.is_none().then_some(base64.as_str()),
                received_at: self.received_at,
            },
        });
        Event {
            id,
            kind,
            conversation: conversation.into(),
            subject: None,
            group_type: None,
            time: self.received_at,
            body,
        }
    }
}

/// What JSON puts around a text.
const QUOTES: usize = 2;

/// The attributes in the order in which they are published.
#[derive(Serialize)]
struct CloudEvent<'a, D> {
    specversion: &'a str,
    id: Uuid,
    source: fmt::Arguments<'a>,
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    time: UnixMillis,
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
    messages: &'a [RecalledMessage<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    recalled_at: Option<UnixMillis>,
    received_at: UnixMillis,
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
    body_base64: Option<&'a str>,
    received_at: UnixMillis,
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

#[cfg(test)]
pub(crate) mod tests;
