//! The event published for a callback: its id and its bytes.
//!
//! An event is a CloudEvents 1.0 message in structured mode. Its bytes are made once, when the callback arrives, and
//! are the same in the spool and on every broker (in Kafka's binary mode, divided into headers and a value). Its id is
//! a pure function of the callback's content: a repeated callback, a restart and a replay all produce the same id.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

mod cloud_event;
mod filter;
mod id;
mod json;
mod published;
mod recalled;
mod time;

pub use filter::EventFilter;
pub use published::{PublishedConversation, PublishedData, PublishedEvent, PublishedMessage};
pub use recalled::{Client, Conversation, KeyParts, Recalled, RecalledMessage, Rejected};
pub use time::UnixMillis;

/// The content type of an event's bytes. Without a parameter: not every official SDK of CloudEvents accepts one.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// An event's number in the spool. Numbers are assigned in order; no two committed events have the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

impl Seq {
    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// How many numbers there are from this one to `last`, which counts, too; 0 if `last` is before it.
    #[must_use]
    pub const fn count_to(self, last: Self) -> u64 {
        (last.0 + 1).saturating_sub(self.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Messages of a group were recalled.
    Group,
    /// A one-to-one message was recalled.
    C2c,
    /// Broadcasts of an official account were recalled.
    OfficialAccount,
    /// An authentic callback could not be parsed. The event is a dead letter from the start.
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

    /// Every kind.
    pub const ALL: [Self; 4] = [
        Self::Group,
        Self::C2c,
        Self::OfficialAccount,
        Self::Rejected,
    ];

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

/// An event, ready to be stored and published. The fields that sinks need are kept beside the body, so that no sink has
/// to parse it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The CloudEvents `id`.
    pub id: Uuid,
    /// What the event is about.
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
    /// The whole event as UTF-8 JSON: the published bytes.
    pub body: Bytes,
}

impl Event {
    /// The application id, in decimal.
    #[must_use]
    pub fn sdk_app_id(&self) -> &str {
        let app = self.conversation.split(':').next();
        app.unwrap_or_default()
    }

    /// Identifies this event even if its number was used for another event, for example after the spool was restored
    /// from a backup.
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

#[cfg(test)]
pub(crate) mod tests;
