//! What a callback said, checked: what an event is made of.

use std::borrow::Cow;

use serde::Serialize;

use super::UnixMillis;

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
    pub(super) fn is_unknown(&self) -> bool {
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

impl Conversation<'_> {
    pub(super) fn subject(&self) -> Cow<'_, str> {
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
