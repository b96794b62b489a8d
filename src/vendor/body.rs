//! The bodies of callbacks as the vendor writes them: compact, with sorted keys.

use serde_json::{Value, json};

use super::query::CallbackKind;

/// The version of the vendor's documentation that a body follows.
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

/// How bodies are written. In all of them `at_ms` is the time of the recall in Unix milliseconds, and a `seq` is the
/// `MsgSeq` of a recalled message.
#[derive(Debug, Clone)]
pub struct BodyFormat {
    /// Version of the bodies.
    pub version: PayloadVersion,
    /// Format of `EventTime`.
    pub event_time: EventTimeForm,
    /// `Type` of the groups; in a `Community` messages belong to a topic.
    pub group_type: String,
}

impl Default for BodyFormat {
    /// Public groups in the newest version of the international documentation.
    fn default() -> Self {
        Self {
            version: PayloadVersion::V3,
            event_time: EventTimeForm::String,
            group_type: "Public".to_owned(),
        }
    }
}

impl BodyFormat {
    /// A recall of group messages; `msg_id` returns the `MsgId` of each.
    pub fn group(
        &self,
        group_id: &str,
        seqs: impl IntoIterator<Item = u64>,
        msg_id: impl Fn(u64) -> String,
        at_ms: u64,
    ) -> String {
        let message = |seq| match self.version {
            PayloadVersion::V3 => json!({"MsgId": msg_id(seq), "MsgSeq": seq}),
            PayloadVersion::V1 | PayloadVersion::V2 => json!({"MsgSeq": seq}),
        };
        let mut body = json!({
            "CallbackCommand": CallbackKind::Group.command(),
            "GroupId": group_id,
            "MsgSeqList": seqs.into_iter().map(message).collect::<Value>(),
            "Operator_Account": "admin",
            "Type": self.group_type,
        });
        if self.version >= PayloadVersion::V2 {
            body["EventTime"] = self.event_time(at_ms);
            if self.group_type == "Community" {
                body["TopicId"] = format!("{group_id}@TOPIC#_send").into();
            }
        }
        body.to_string()
    }

    /// A recall of a message between two users.
    #[must_use]
    pub fn c2c(&self, from: &str, to: &str, seq: u64, at_ms: u64) -> String {
        let mut body = json!({
            "CallbackCommand": CallbackKind::C2c.command(),
            "From_Account": from,
            "MsgKey": msg_key(seq, at_ms),
            "To_Account": to,
        });
        if self.version == PayloadVersion::V1 {
            body["UnreadMsgNum"] = 7.into();
        } else {
            body["EventTime"] = self.event_time(at_ms);
        }
        body.to_string()
    }

    /// A recall of messages of an official account.
    pub fn official_account(
        &self,
        account: &str,
        seqs: impl IntoIterator<Item = u64>,
        at_ms: u64,
    ) -> String {
        let message = |seq| json!({"MsgKey": msg_key(seq, at_ms)});
        json!({
            "CallbackCommand": CallbackKind::OfficialAccount.command(),
            "EventTime": self.event_time(at_ms),
            "Official_Account": account,
            "WithdrawMsgList": seqs.into_iter().map(message).collect::<Value>(),
        })
        .to_string()
    }

    /// Not a recall: a group message is about to be sent.
    #[must_use]
    pub fn other(&self, group_id: &str, seq: u64) -> String {
        json!({
            "CallbackCommand": CallbackKind::Other.command(),
            "From_Account": "jared",
            "GroupId": group_id,
            "MsgBody": [{"MsgContent": {"Text": "hello"}, "MsgType": "TIMTextElem"}],
            "Operator_Account": "admin",
            "Random": random(seq),
            "Type": self.group_type,
        })
        .to_string()
    }

    /// The id of a group of this type.
    #[must_use]
    pub fn group_id(&self, number: u64) -> String {
        match self.group_type.as_str() {
            "Community" => format!("@TGS#_send-{number}"),
            _ => format!("@TGS#send-{number}"),
        }
    }

    pub(super) fn event_time(&self, at_ms: u64) -> Value {
        match self.event_time {
            EventTimeForm::String => at_ms.to_string().into(),
            EventTimeForm::Number => at_ms.into(),
        }
    }
}

/// A `MsgId` as the vendor forms it: the number of the sender, the time in seconds and a random number.
#[must_use]
pub fn msg_id(sender: u64, seq: u64, at_ms: u64) -> String {
    format!("{sender}-{}-{}", at_ms / 1000, random(seq))
}

fn msg_key(seq: u64, at_ms: u64) -> String {
    format!("{seq}_{}_{}", random(seq), at_ms / 1000)
}

/// A 32-bit number that looks random. It differs for any two `seq` whose low 32 bits differ.
pub(super) const fn random(seq: u64) -> u64 {
    seq.wrapping_mul(2_654_435_761) & 0xffff_ffff
}

#[cfg(test)]
mod tests;
