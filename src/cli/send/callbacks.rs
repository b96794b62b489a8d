//! Creates the callbacks: bodies as the vendor writes them, compact, with sorted keys.
//!
//! No two callbacks recall the same message, and within a conversation `MsgSeq` increases by one from message to
//! message. So a subscriber can check for gaps, duplicates and order.

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;

use super::order::{Order, Place};

/// The time of the first callback of a repeatable run: 2022-12-09T08:26:54.123Z.
const REPEATABLE_START_MS: u64 = 1_670_574_414_123;

/// What the callback reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallbackKind {
    /// A group message was recalled.
    Group,
    /// A message between two users was recalled.
    C2c,
    /// Messages of an official account were recalled.
    OfficialAccount,
    /// Nothing: the console's "verify" button, which sends no body, application or signature.
    Probe,
    /// Something else: a group message is about to be sent.
    Other,
}

impl CallbackKind {
    /// The vendor's name for it, as in the query.
    pub const fn command(self) -> &'static str {
        match self {
            Self::Group | Self::Probe => "Group.CallbackAfterRecallMsg",
            Self::C2c => "C2C.CallbackAfterMsgWithDraw",
            Self::OfficialAccount => "OfficialAccount.CallbackAfterMsgWithDraw",
            Self::Other => "Group.CallbackBeforeSendMsg",
        }
    }
}

/// The version of the vendor's documentation that the body follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum PayloadVersion {
    /// Group without `TopicId`, `EventTime` and `MsgId`; C2C with `UnreadMsgNum`
    V1,
    /// Group with `EventTime` (and `TopicId` in communities); C2C with `EventTime`
    V2,
    /// Like v2, and each group message has its `MsgId`
    V3,
}

/// The format of `EventTime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum EventTimeForm {
    /// As in the international documentation
    String,
    /// As in the Chinese documentation
    Number,
}

/// The source of `EventTime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The current time.
    Now,
    /// A fixed start plus one millisecond per callback: the same in every run.
    Repeatable,
}

/// Creates the callback of each number.
#[derive(Debug)]
pub struct Callbacks {
    /// The kinds to send, in turn.
    pub kinds: &'static [CallbackKind],
    /// Version of the recall bodies.
    pub version: PayloadVersion,
    /// Format of `EventTime`.
    pub event_time: EventTimeForm,
    /// `Type` of the groups.
    pub group_type: String,
    /// Conversations of each kind.
    pub conversations: u64,
    /// Recalled messages per callback; a C2C callback always has one.
    pub messages: u64,
    /// The first `MsgSeq` of every conversation.
    pub first_seq: u64,
    /// Source of `EventTime`.
    pub clock: Clock,
}

/// One callback, before it is signed.
#[derive(Debug)]
pub struct Callback {
    /// What it reports.
    pub kind: CallbackKind,
    /// The request body.
    pub body: Bytes,
}

#[derive(Serialize)]
#[serde(untagged)]
enum EventTime {
    Text(String),
    Number(u64),
}

// The fields of every body are sorted by their names on the wire.

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct GroupRecall<'a> {
    callback_command: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_time: Option<EventTime>,
    group_id: String,
    msg_seq_list: Vec<GroupMessage>,
    #[serde(rename = "Operator_Account")]
    operator_account: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic_id: Option<String>,
    r#type: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct GroupMessage {
    #[serde(skip_serializing_if = "Option::is_none")]
    msg_id: Option<String>,
    msg_seq: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct C2cRecall<'a> {
    callback_command: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_time: Option<EventTime>,
    #[serde(rename = "From_Account")]
    from_account: String,
    msg_key: String,
    #[serde(rename = "To_Account")]
    to_account: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    unread_msg_num: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct OfficialAccountRecall<'a> {
    callback_command: &'a str,
    event_time: EventTime,
    #[serde(rename = "Official_Account")]
    official_account: String,
    withdraw_msg_list: Vec<KeyedMessage>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct KeyedMessage {
    msg_key: String,
}

impl Callbacks {
    /// How the callbacks are assigned to commands and conversations.
    pub const fn order(&self) -> Order {
        Order {
            commands: self.kinds.len() as u64,
            conversations: self.conversations,
        }
    }

    /// Creates callback `number`.
    ///
    /// # Errors
    /// No known case: serializing these bodies cannot fail.
    pub fn make(&self, number: u64) -> anyhow::Result<Callback> {
        let order = self.order();
        let place = order.place(number);
        let kind = self.kinds[usize::try_from(place.command)?];
        let at_ms = match self.clock {
            Clock::Now => u64::try_from(Timestamp::now().as_millisecond())?,
            Clock::Repeatable => REPEATABLE_START_MS + number,
        };
        let body = match kind {
            CallbackKind::Group => serde_json::to_vec(&self.group(place, at_ms))?,
            CallbackKind::C2c => serde_json::to_vec(&self.c2c(place, at_ms))?,
            CallbackKind::OfficialAccount => {
                serde_json::to_vec(&self.official_account(place, at_ms))?
            }
            CallbackKind::Probe => Vec::new(),
            CallbackKind::Other => self.other(place).into_bytes(),
        };
        Ok(Callback {
            kind,
            body: body.into(),
        })
    }

    fn group(&self, place: Place, at_ms: u64) -> GroupRecall<'_> {
        let conversation = place.conversation;
        let community = self.group_type == "Community";
        let group_id = if community {
            format!("@TGS#_send-{conversation}")
        } else {
            format!("@TGS#send-{conversation}")
        };
        let message = |seq| GroupMessage {
            msg_id: (self.version >= PayloadVersion::V3).then(|| {
                let sender = 144_115_213_000_000_000 + conversation;
                format!("{sender}-{}-{}", at_ms / 1000, random(seq))
            }),
            msg_seq: seq,
        };
        let since_v2 = self.version >= PayloadVersion::V2;
        GroupRecall {
            callback_command: CallbackKind::Group.command(),
            event_time: since_v2.then(|| self.event_time(at_ms)),
            topic_id: (since_v2 && community).then(|| format!("{group_id}@TOPIC#_send")),
            group_id,
            msg_seq_list: self.seqs(place, self.messages).map(message).collect(),
            operator_account: "admin",
            r#type: &self.group_type,
        }
    }

    fn c2c(&self, place: Place, at_ms: u64) -> C2cRecall<'_> {
        let v1 = self.version == PayloadVersion::V1;
        let conversation = place.conversation;
        C2cRecall {
            callback_command: CallbackKind::C2c.command(),
            event_time: (!v1).then(|| self.event_time(at_ms)),
            from_account: format!("sender-{conversation}"),
            msg_key: msg_key(self.first_seq + place.turn, at_ms),
            to_account: format!("receiver-{conversation}"),
            unread_msg_num: v1.then_some(7),
        }
    }

    fn official_account(&self, place: Place, at_ms: u64) -> OfficialAccountRecall<'_> {
        let message = |seq| KeyedMessage {
            msg_key: msg_key(seq, at_ms),
        };
        OfficialAccountRecall {
            callback_command: CallbackKind::OfficialAccount.command(),
            event_time: self.event_time(at_ms),
            official_account: format!("#TOA#_{}", place.conversation),
            withdraw_msg_list: self.seqs(place, self.messages).map(message).collect(),
        }
    }

    fn other(&self, place: Place) -> String {
        serde_json::json!({
            "CallbackCommand": CallbackKind::Other.command(),
            "From_Account": "jared",
            "GroupId": format!("@TGS#send-{}", place.conversation),
            "MsgBody": [{"MsgContent": {"Text": "hello"}, "MsgType": "TIMTextElem"}],
            "Operator_Account": "admin",
            "Random": random(self.first_seq + place.turn),
            "Type": self.group_type,
        })
        .to_string()
    }

    fn seqs(&self, place: Place, messages: u64) -> std::ops::Range<u64> {
        let first = self.first_seq + place.turn * messages;
        first..first + messages
    }

    fn event_time(&self, at_ms: u64) -> EventTime {
        match self.event_time {
            EventTimeForm::String => EventTime::Text(at_ms.to_string()),
            EventTimeForm::Number => EventTime::Number(at_ms),
        }
    }
}

fn msg_key(seq: u64, at_ms: u64) -> String {
    format!("{seq}_{}_{}", random(seq), at_ms / 1000)
}

/// A 32-bit number that looks random. It differs for any two `seq` whose low 32 bits differ.
const fn random(seq: u64) -> u64 {
    seq.wrapping_mul(2_654_435_761) & 0xffff_ffff
}

#[cfg(test)]
mod tests;
