//! What a recall callback says: from its body to the event, in every published version.
//!
//! The identity of a recall (which conversation, which messages) must be understood in full. Any other
//! field that is missing or odd is left out of the event and reported beside it: subscribers must learn
//! of a recall even when a detail of it is odd.

use std::borrow::Cow;
use std::net::IpAddr;

use serde_json_borrow::{ObjectAsVec, Value};

use super::classify::Body;
use super::{Query, Recall};
use crate::event::{Client, Conversation, Event, KeyParts, Message, Millis, Recalled};

/// A recall that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Understood {
    /// What to publish.
    pub event: Event,
    /// Which fields the event does without, and why.
    pub oddities: Vec<Oddity>,
}

/// A field that a recall's event does without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Oddity {
    /// It was not there.
    Missing(&'static str),
    /// It was there, and unusable.
    Unusable(&'static str),
}

/// Why the identity of a recall could not be understood, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The body is not JSON.
    #[error("body is not JSON: {0}")]
    NotJson(String),
    /// The body is JSON of another shape.
    #[error("body is not a JSON object")]
    NotAnObject,
    /// The query and the body name different commands.
    #[error("query names {query} but body names {body}")]
    Command {
        /// What the query names.
        query: String,
        /// What the body names.
        body: String,
    },
    /// A field that tells which conversation is missing, empty or of the wrong type.
    #[error("{0} {1}")]
    Conversation(&'static str, &'static str),
    /// The list of messages, or one of them, is missing, empty or of the wrong type.
    #[error("{0} {1}")]
    Messages(String, &'static str),
}

impl Fault {
    /// The fault as one word, for counting and for the dead letter's `reason`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotJson(_) => "not_json",
            Self::NotAnObject => "not_an_object",
            Self::Command { .. } => "command",
            Self::Conversation(..) => "conversation",
            Self::Messages(..) => "messages",
        }
    }
}

/// Characters of what was sent that are shown in an answer and in the log.
const SHOWN: usize = 100;

const MISSING: &str = "is missing";
const EMPTY: &str = "is empty";
const NOT_TEXT: &str = "is not a string";

/// Makes the event of a recall.
///
/// # Errors
/// Tells what could not be understood, and where. The callback must then be kept whole.
pub fn understand(
    sdk_app_id: u64,
    recall: Recall,
    query: &Query<'_>,
    body: &Body<'_>,
    received_at: Millis,
) -> Result<Understood, Fault> {
    let object = match body {
        Body::Object(object) => object,
        Body::NoObject => return Err(Fault::NotAnObject),
        Body::NoJson(error) => return Err(Fault::NotJson(error.clone())),
    };
    if let (Some(in_query), Some(in_body)) = (query.command(), body.command())
        && in_query != in_body
    {
        return Err(Fault::Command {
            query: in_query.chars().take(SHOWN).collect(),
            body: in_body.chars().take(SHOWN).collect(),
        });
    }

    let mut fields = Fields {
        object,
        oddities: Vec::new(),
    };
    let mut operator_id = None;
    let (conversation, messages) = match recall {
        Recall::Group => {
            let group_id = fields.identity("GroupId")?;
            let topic_id = fields.topic()?;
            let messages = fields.group_messages()?;
            operator_id = fields.detail("Operator_Account");
            let conversation = Conversation::Group {
                group_id,
                group_type: fields.detail("Type"),
                topic_id,
            };
            (conversation, messages)
        }
        Recall::C2c => {
            let conversation = Conversation::C2c {
                from_account: fields.identity("From_Account")?,
                to_account: fields.identity("To_Account")?,
            };
            let key = fields
                .object
                .get("MsgKey")
                .ok_or(Fault::Messages("MsgKey".to_owned(), MISSING))?;
            (conversation, vec![message_by_key("MsgKey", key)?])
        }
        Recall::OfficialAccount => {
            let conversation = Conversation::OfficialAccount {
                official_account: fields.identity("Official_Account")?,
            };
            (conversation, fields.withdrawn_messages()?)
        }
    };
    let recalled = Recalled {
        sdk_app_id,
        command: recall.command(),
        conversation,
        operator_id,
        messages,
        recalled_at: fields.event_time(),
        received_at,
        client: fields.client(query),
    };
    Ok(Understood {
        event: recalled.event(),
        oddities: fields.oddities,
    })
}

/// The body's fields, and what was odd about them so far.
struct Fields<'a> {
    object: &'a ObjectAsVec<'a>,
    oddities: Vec<Oddity>,
}

impl<'a> Fields<'a> {
    /// A text that tells which conversation.
    fn identity(&self, name: &'static str) -> Result<&'a str, Fault> {
        match self.object.get(name) {
            None => Err(Fault::Conversation(name, MISSING)),
            Some(Value::Str(text)) if text.is_empty() => Err(Fault::Conversation(name, EMPTY)),
            Some(Value::Str(text)) => Ok(text),
            Some(_) => Err(Fault::Conversation(name, NOT_TEXT)),
        }
    }

    /// The topic: absent where the group has none, which the vendor also writes as `""`.
    fn topic(&self) -> Result<Option<&'a str>, Fault> {
        match self.object.get("TopicId") {
            None => Ok(None),
            Some(Value::Str(text)) => Ok(Some(&**text).filter(|text| !text.is_empty())),
            Some(_) => Err(Fault::Conversation("TopicId", NOT_TEXT)),
        }
    }

    fn list(&self, name: &'static str) -> Result<&'a [Value<'a>], Fault> {
        match self.object.get(name) {
            None => Err(Fault::Messages(name.to_owned(), MISSING)),
            Some(Value::Array(list)) if list.is_empty() => {
                Err(Fault::Messages(name.to_owned(), EMPTY))
            }
            Some(Value::Array(list)) => Ok(list),
            Some(_) => Err(Fault::Messages(name.to_owned(), "is not an array")),
        }
    }

    fn group_messages(&mut self) -> Result<Vec<Message<'a>>, Fault> {
        let list = self.list("MsgSeqList")?;
        let mut messages = Vec::with_capacity(list.len());
        for (index, entry) in list.iter().enumerate() {
            let seq = field(entry, "MsgSeq")
                .ok_or_else(|| Fault::Messages(format!("MsgSeqList[{index}].MsgSeq"), MISSING))?;
            let seq = unsigned(seq).ok_or_else(|| {
                let path = format!("MsgSeqList[{index}].MsgSeq");
                Fault::Messages(path, "is not an unsigned 64-bit number")
            })?;
            let id = self.text(field(entry, "MsgId"), "MsgId");
            messages.push(Message::Group { seq, id });
        }
        Ok(messages)
    }

    fn withdrawn_messages(&self) -> Result<Vec<Message<'a>>, Fault> {
        self.list("WithdrawMsgList")?
            .iter()
            .enumerate()
            .map(|(index, entry)| {
                let path = format!("WithdrawMsgList[{index}].MsgKey");
                match field(entry, "MsgKey") {
                    Some(key) => message_by_key(&path, key),
                    None => Err(Fault::Messages(path, MISSING)),
                }
            })
            .collect()
    }

    /// A text that is only a detail.
    fn detail(&mut self, name: &'static str) -> Option<&'a str> {
        self.text(self.object.get(name), name)
    }

    fn text(&mut self, value: Option<&'a Value<'a>>, name: &'static str) -> Option<&'a str> {
        match value {
            None => self.odd(Oddity::Missing(name)),
            Some(Value::Str(text)) if !text.is_empty() => Some(text),
            Some(_) => self.odd(Oddity::Unusable(name)),
        }
    }

    /// `EventTime`: milliseconds, as a number or as text.
    fn event_time(&mut self) -> Option<Millis> {
        match self.object.get("EventTime") {
            None => self.odd(Oddity::Missing("EventTime")),
            Some(value) => match unsigned(value).and_then(Millis::new) {
                None => self.odd(Oddity::Unusable("EventTime")),
                time => time,
            },
        }
    }

    fn client<'q>(&mut self, query: &Query<'q>) -> Client<'q> {
        let ip = match &query.client_ip {
            None => self.odd(Oddity::Missing("ClientIP")),
            Some(ip) if ip.parse::<IpAddr>().is_ok() => Some(Cow::clone(ip)),
            Some(_) => self.odd(Oddity::Unusable("ClientIP")),
        };
        let platform = match &query.platform {
            None => self.odd(Oddity::Missing("OptPlatform")),
            Some(platform) if platform.is_empty() => self.odd(Oddity::Unusable("OptPlatform")),
            Some(platform) => Some(Cow::clone(platform)),
        };
        Client { ip, platform }
    }

    fn odd<T>(&mut self, oddity: Oddity) -> Option<T> {
        if !self.oddities.contains(&oddity) {
            self.oddities.push(oddity);
        }
        None
    }
}

/// A field of what should be an object.
fn field<'a>(value: &'a Value<'a>, name: &str) -> Option<&'a Value<'a>> {
    value.as_object()?.get(name)
}

/// A number, or text made of decimal digits alone.
fn unsigned(value: &Value<'_>) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::Str(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

/// A message named by its `MsgKey`, usually `<MsgSeq>_<MsgRandom>_<MsgTime seconds>`.
fn message_by_key<'a>(path: &str, value: &'a Value<'_>) -> Result<Message<'a>, Fault> {
    match value {
        Value::Str(key) if key.is_empty() => Err(Fault::Messages(path.to_owned(), EMPTY)),
        Value::Str(key) => Ok(Message::Keyed {
            key,
            parts: key_parts(key),
        }),
        _ => Err(Fault::Messages(path.to_owned(), NOT_TEXT)),
    }
}

fn key_parts(key: &str) -> Option<KeyParts> {
    let mut numbers = key.split('_').map(|part| {
        let digits = part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse::<u64>().ok()).flatten()
    });
    let (seq, random, seconds) = (numbers.next()??, numbers.next()??, numbers.next()??);
    if numbers.next().is_some() {
        return None;
    }
    Some(KeyParts {
        seq,
        random,
        sent_at: Millis::new(seconds.checked_mul(1000)?)?,
    })
}

#[cfg(test)]
mod tests;
