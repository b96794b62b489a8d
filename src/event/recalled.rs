//! The validated content of a callback, from which an event is made.

use std::borrow::Cow;

use serde::Serialize;

use super::time::UnixMillis;

/// The validated content of a recall callback: everything that the event contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recalled<'a> {
    /// The application.
    pub sdk_app_id: u64,
    /// The vendor's `CallbackCommand`; part of the id.
    pub command: &'a str,
    /// The conversation of the messages.
    pub conversation: Conversation<'a>,
    /// The user who recalled them.
    pub operator_id: Option<&'a str>,
    /// The messages, in the order received; never empty.
    pub messages: Vec<RecalledMessage<'a>>,
    /// When the messages were recalled (the vendor's `EventTime`).
    pub recalled_at: Option<UnixMillis>,
    /// When the callback arrived.
    pub received_at: UnixMillis,
    /// The client that recalled them.
    pub client: Client<'a>,
}

/// The conversation of the recalled messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Conversation<'a> {
    /// A group, or a topic of a community.
    Group {
        /// The vendor's `GroupId`.
        group_id: &'a str,
        /// The vendor's `Type`; new values may be added.
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
        /// The receiver of the message.
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
    /// A group message.
    Group {
        /// Counted per group and, in communities, per topic.
        seq: u64,
        /// Unique, and never reused; older versions of the callback do not have it.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
    },
    /// A message of any other conversation.
    Keyed {
        /// The vendor's `MsgKey`.
        key: &'a str,
        /// The parts of the key, if it has the form `<seq>_<random>_<unix seconds>`.
        #[serde(flatten)]
        parts: Option<KeyParts>,
    },
}

/// The parts of a `MsgKey`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyParts {
    /// The message's sequence number.
    pub seq: u64,
    /// The message's random number.
    pub random: u64,
    /// When the message was sent.
    pub sent_at: UnixMillis,
}

/// The client that recalled the messages, as far as the vendor reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Client<'a> {
    /// The end user's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<Cow<'a, str>>,
    /// `RESTAPI`, `Web`, `Android`, …; new values may be added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Cow<'a, str>>,
}

impl Client<'_> {
    pub(super) fn is_unknown(&self) -> bool {
        self.ip.is_none() && self.platform.is_none()
    }
}

/// An authentic callback that could not be parsed, stored whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected<'a> {
    /// The application.
    pub sdk_app_id: u64,
    /// The error as one word.
    pub reason: &'a str,
    /// The error and its location, for people.
    pub detail: &'a str,
    /// The command, if known.
    pub command: Option<&'a str>,
    /// The query without `Sign` and `RequestTime`.
    pub query: &'a str,
    /// The body as received.
    pub body: &'a [u8],
    /// When the callback arrived.
    pub received_at: UnixMillis,
}

impl Conversation<'_> {
    /// The CloudEvents `subject`. Each pair of accounts has its own, because `:` is escaped in both.
    pub(super) fn subject(&self) -> Cow<'_, str> {
        match self {
            Self::Group { group_id, .. } => Cow::Borrowed(group_id),
            Self::C2c {
                from_account,
                to_account,
            } => Cow::Owned(format!("{}:{}", escape(from_account), escape(to_account))),
            Self::OfficialAccount { official_account } => Cow::Borrowed(official_account),
        }
    }
}

/// An account without any `:`; different accounts stay different.
pub(super) fn escape(account: &str) -> String {
    account.replace('%', "%25").replace(':', "%3A")
}
