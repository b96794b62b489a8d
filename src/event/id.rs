//! The id of an event: a pure function of the callback's content.

use serde::Serialize;
use sha1::{Digest as _, Sha1};
use uuid::{Uuid, uuid};

use super::json::to_json;
use super::{Conversation, Recalled, RecalledMessage};

/// `UUIDv5` of the URL namespace and `urn:recall-relay:event`.
pub(super) const NAMESPACE: Uuid = uuid!("afda6519-29bd-5e88-a7b3-75bca6e68e98");

impl Recalled<'_> {
    /// `UUIDv5` of `[app, command, conversation ids, messages, EventTime]`.
    ///
    /// `EventTime` is included only if a group message has no id of its own: if a group is deleted and created again,
    /// its messages are numbered from 1 again.
    pub(super) fn id(&self) -> Uuid {
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

#[derive(Serialize)]
#[serde(untagged)]
enum MessageId<'a> {
    Group(u64, Option<&'a str>),
    Key(&'a str),
}

pub(super) fn name_to_id(name: &impl Serialize) -> Uuid {
    // Same result as `Uuid::new_v5`, whose SHA-1 does not use the CPU's SHA instructions.
    let hash = Sha1::new()
        .chain_update(NAMESPACE)
        .chain_update(to_json(name))
        .finalize();
    let [first @ .., _, _, _, _] = <[u8; 20]>::from(hash);
    uuid::Builder::from_sha1_bytes(first).into_uuid()
}
